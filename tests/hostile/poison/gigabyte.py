"""Escape: a gigabyte of metrics is read."""

with open("metrics.json", "w") as file:
    file.write('{"metrics": {"score": 1}, "more": "')
    for _ in range(300):
        file.write("x" * (1 << 20))
    file.write('"}')
