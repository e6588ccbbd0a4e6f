"""
What outlives a process or is shared by several: breakers, trials, limits, events, incidents.

`base` is the seam, `embedded` keeps a file beside one proxy, `redis` is shared by many. All of
it is advisory: whoever asks a store must be able to go on without an answer.
"""
