"""The routes of the server. The event loop never computes: threads read headers, decode and run the network."""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from yoloyard import __name__ as package
from yoloyard.common.versions import own_version
from yoloyard.serving import v2
from yoloyard.serving.batching import Queue, Work
from yoloyard.serving.limits import IMAGE_BYTES, Bodies, size_before_decoding
from yoloyard.serving.metrics import Metrics
from yoloyard.serving.served import Served

HEALTH = "/v2/health/"
LEFT = 499  # the status under which a request counts whose client has left
