"""
Serving, in this process or in several that look like one.

`process` is one that serves: log, traces, proxy and server, put together and run. `parent` starts
several, replaces those that die, and ends with them; `worker` is what each of them knows of that.
Decision 15 says why it is done this way.
"""

from sentinel_proxy.workers.serving import serve as serve
