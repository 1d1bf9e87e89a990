"""Escape: a program with a set-user-id bit gives a run more than it has."""

import ctypes

if ctypes.CDLL(None).prctl(39, 0, 0, 0, 0) == 0:  # PR_GET_NO_NEW_PRIVS
    print("ESCAPED")
