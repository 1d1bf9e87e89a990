"""Language models: clients of their servers, structured replies, and which request goes where.

`model` and `errors` are what it speaks of. Knows httpx; nothing of tasks, Ray or the spool.
"""
