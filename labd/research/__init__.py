"""Research: from a template to a paper, each part a journaled step.

Knows neither Ray nor the spool: the sandbox, the journal and the place for files come as given tools.
"""
