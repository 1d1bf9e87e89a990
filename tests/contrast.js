// Gives what breaks WCAG 2.1 AA here: texts without contrast (4.5 to 1, large ones 3 to 1), controls without names.
() => {
  const parse = (text) => {
    const parts = text.match(/[\d.]+/g).map(Number);
    return { rgb: parts.slice(0, 3), a: parts.length > 3 ? parts[3] : 1 };
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (colour.startsWith("rgb") && parse(colour).a > 0.99) return parse(colour).rgb;
    }
    return parse(getComputedStyle(document.body).backgroundColor).rgb;
  };
  const wrong = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !e.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    if (["SCRIPT", "STYLE", "NOSCRIPT", "TITLE", "METER", "PROGRESS", "OPTION"].includes(e.tagName) || e.closest("[aria-hidden=true],:disabled")) continue;
    const style = getComputedStyle(e);
    const svg = e.closest("svg");
    const colour = svg ? style.fill : style.color;
    if (!colour.startsWith("rgb")) continue;
    const [one, other] = [light(parse(colour).rgb), light(behind(e))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) wrong.push(`${ratio.toFixed(2)} ${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 40)}`);
  }
  for (const e of document.querySelectorAll("button, a[href], input, textarea, select, iframe, [role=button], [role=tab]")) {
    if (!e.checkVisibility() || e.type === "hidden") continue;
    const labelled = (e.getAttribute("aria-labelledby") || "").split(" ").map((id) => document.getElementById(id)?.textContent || "").join("");
    const label = e.getAttribute("aria-label") || labelled || e.title || e.textContent.trim() || [...(e.labels || [])].map((l) => l.textContent).join("");
    if (!label.trim()) wrong.push(`no name: ${e.outerHTML.slice(0, 120)}`);
  }
  for (const e of document.images) if (!e.hasAttribute("alt")) wrong.push(`no alt: ${e.src}`);
  if (!document.documentElement.lang) wrong.push("no language");
  return wrong;
}
