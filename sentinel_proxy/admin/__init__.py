"""
What operators see and order: one Starlette sub-application beside the API.

`operations` is what can be learned and done, `routes` how that is asked over HTTP, `access` by
whom. `broadcast` carries the live feed, `reporter` fills it, `live` hands it out over a
WebSocket. `openapi` describes every face of the proxy, path by path (`paths`) and shape by shape
(`schemas`), and `manual` makes a page of that.
"""
