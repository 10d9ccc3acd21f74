"""People over HTTP: what they say of themselves, what they agree to, all that is known of them, and its end."""

from __future__ import annotations

from api.kernel import app_of
from api.user import addresses, consents, person, profile

router = profile.router
for part in (addresses, consents, person):
    router.routes.extend(part.router.routes)

app = app_of(router)
