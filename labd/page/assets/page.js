// What the browser itself keeps going between two looks of the server: times, focus, the log's end, the address.
(() => {
  "use strict";
  const labd = (window.labd = { lastPulse: 0, at: 0 });

  const duration = (seconds) => {
    const s = Math.max(0, Math.round(seconds));
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} m ${String(s % 60).padStart(2, "0")} s`;
    if (s < 86400) return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} m`;
    return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
  };
  // The server's clock, carried on by ours, whose own time of day may differ.
  const now = () => (labd.at ? labd.at + (performance.now() - labd.lastPulse) / 1000 : Date.now() / 1000);
  const put = (element, text) => {
    if (element.textContent !== text) element.textContent = text;
  };

  labd.times = () => {
    for (const e of document.querySelectorAll("[data-ago],[data-since]")) {
      put(e, (e.dataset.text || "{age}").replace("{age}", duration(now() - Number(e.dataset.ago || e.dataset.since))));
    }
    for (const e of document.querySelectorAll("[data-until]")) {
      put(e, e.dataset.text.replace("{age}", duration(Number(e.dataset.until) - now())));
    }
    const pulse = document.getElementById("pulse");
    if (pulse && labd.lastPulse) {
      const silent = (performance.now() - labd.lastPulse) / 1000;
      const old = silent > 10;
      pulse.classList.toggle("old", old);
      let note = document.getElementById("pulse-old");
      if (old && !note) {
        note = document.createElement("strong");
        note.id = "pulse-old";
        note.setAttribute("role", "alert");
        pulse.after(note);
      }
      if (note) put(note, old ? pulse.dataset.old.replace("{age}", duration(silent)) : "");
    }
  };
  labd.pulse = (element) => {
    const pulse = element.querySelector("#pulse");
    const at = pulse ? Number(pulse.dataset.at) : 0;
    if (at !== labd.at || !labd.lastPulse) {
      labd.at = at;
      labd.lastPulse = performance.now();
    }
    labd.times();
  };
  setInterval(labd.times, 1000);

  // A page whose process ended hears nothing more, though another has taken its place: then it loads itself anew. It asks
  // first whether somebody answers, because what the browser shows where nobody does has no way back. Gradio does the
  // like by itself, but not each time.
  const SILENT_S = 15;
  const RELOAD_EVERY_S = 30;
  let asking = false;
  labd.revive = async () => {
    const silent = labd.lastPulse && (performance.now() - labd.lastPulse) / 1000 > SILENT_S;
    const lately = Date.now() - Number(sessionStorage.getItem("labd.revived") || 0) < 1000 * RELOAD_EVERY_S;
    if (!silent || lately || asking) return;
    asking = true;
    try {
      const reply = await fetch("/healthz", { cache: "no-store", signal: AbortSignal.timeout(3000) });
      if (!reply.ok) return;
      sessionStorage.setItem("labd.revived", String(Date.now()));
      location.reload();
    } catch {
      // Nobody answers yet: the next turn asks again.
    } finally {
      asking = false;
    }
  };
  setInterval(labd.revive, 2000);

  // A log stays at its end unless somebody scrolled up; another task's begins at its end.
  labd.sticky = (element) => {
    const log = element.querySelector("pre.log");
    const panel = element.querySelector("[data-for]");
    if (!log || !panel) return;
    if (element._for !== panel.dataset.for) {
      element._for = panel.dataset.for;
      element._end = true;
      log.onscroll = () => {
        element._end = log.scrollHeight - log.scrollTop - log.clientHeight < 30;
      };
    }
    if (element._end) log.scrollTop = log.scrollHeight;
  };

  labd.move = (event, selector, step) => {
    const all = [...event.currentTarget.querySelectorAll(selector)];
    const here = all.indexOf(event.target.closest(selector));
    const next = all[here + step];
    if (here < 0 || !next) return null;
    event.preventDefault();
    for (const one of all) one.tabIndex = one === next ? 0 : -1;
    next.focus();
    return next;
  };

  labd.address = (query) => {
    const url = new URL(window.location.href);
    url.search = query;
    if (url.href !== window.location.href) history.replaceState(history.state, "", url);
  };
})();
