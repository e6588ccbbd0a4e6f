"""How the sub-application lies beside the API, though their paths are mixed."""

from starlette.applications import Starlette
from starlette.routing import Match, Mount
from starlette.types import Scope


class Beside(Mount):
    """
    Gives a sub-application exactly what it has routes for; all else is others' to answer.

    `/api/chat` is an application's and `/api/config` an operator's, so no prefix tells them
    apart. A mount takes everything below its path; this one asks first.
    """

    def __init__(self, app: Starlette) -> None:
        super().__init__("", app=app)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Say how well the best of its routes fits."""
        best = max((route.matches(scope)[0] for route in self.routes), key=lambda match: match.value)
        if best is Match.NONE:
            return best, {}
        return best, super().matches(scope)[1]
