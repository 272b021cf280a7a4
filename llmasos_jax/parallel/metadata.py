"""What a machine of Google's cloud knows of itself. Nothing here imports JAX."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request

# The variable by which Google's own clients are sent elsewhere, too.
HOST = "GCE_METADATA_HOST"
_HOST = "metadata.google.internal"


def metadata(name: str, *, tries: int = 1, timeout_s: float = 5.0) -> str | None:
    """A value of the metadata server's folder `instance/`; None where there is none, or no server.

    Args:
      name: "maintenance-event", "attributes/tpu-env", ...
      tries: how often to ask a server that does not answer.
      timeout_s: seconds that each of them may take.
    """
    url = f"http://{os.environ.get(HOST, _HOST)}/computeMetadata/v1/instance/{name}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    # It is on the machine itself: never through a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(tries):
        try:
            with opener.open(request, timeout=timeout_s) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError:
            return None
        except (OSError, ValueError, http.client.HTTPException):
            continue
    return None
