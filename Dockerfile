# Two stages: the first installs, the second has what runs and nothing to build with.
FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /opt/sentinel-proxy
COPY pyproject.toml README.md LICENSE ./
COPY sentinel_proxy ./sentinel_proxy
RUN /opt/sentinel-proxy/bin/pip install --no-cache-dir .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin sentinel
COPY --from=build /opt/sentinel-proxy /opt/sentinel-proxy
ENV PATH="/opt/sentinel-proxy/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    APP_ENV=production \
    SENTINEL_HOST=0.0.0.0 \
    SENTINEL_PORT=8000
USER sentinel
EXPOSE 8000

# Alive, not ready: a container that drains is well. http.client looks at no proxy variables.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['SENTINEL_PORT']), timeout=2); c.request('GET', '/livez'); sys.exit(c.getresponse().status != 200)"]

# The proxy itself is process 1, so the SIGTERM of `docker stop` reaches it and it drains.
STOPSIGNAL SIGTERM
ENTRYPOINT ["sentinel-proxy"]
CMD ["serve"]
