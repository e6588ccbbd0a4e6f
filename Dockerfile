# Two stages: the first installs, the second has what runs and nothing to build with.
FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /opt/sentinel-proxy
COPY pyproject.toml README.md LICENSE ./
COPY sentinel_proxy ./sentinel_proxy
# With what is optional elsewhere: an image cannot be extended by a variable, and unused it costs no memory.
RUN /opt/sentinel-proxy/bin/pip install --no-cache-dir ".[http2,otel]"

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin sentinel
COPY --from=build /opt/sentinel-proxy /opt/sentinel-proxy
ENV PATH="/opt/sentinel-proxy/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    APP_ENV=production \
    SENTINEL_HOST=0.0.0.0 \
    SENTINEL_PORT=8000
# Nothing is ever written to the file system, so it may be read-only; with `state.url = "sqlite:///..."` give
# that path a volume that user 10001 may write to.
USER 10001
EXPOSE 8000

# Alive, not ready: a container that drains is well. http.client looks at no proxy variables.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['SENTINEL_PORT']), timeout=2); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]

# The proxy itself (or the parent of its workers) is process 1, so the SIGTERM of `docker stop` reaches it and it
# drains. Give it more time than server.drain_seconds: `docker stop --time 40`, or `stop_grace_period`.
STOPSIGNAL SIGTERM
ENTRYPOINT ["sentinel-proxy"]
CMD ["serve"]
