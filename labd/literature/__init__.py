"""Literature: what is known of other people's papers, whether an idea is near to one.

A paper here is always a record that a source gave: a file of the user's own, or an index on the network. Knows
nothing of tasks, research, language models or the spool.

`search.Literature` asks; `novelty.judge_novelty` judges; `paper` says what a record is.
"""
