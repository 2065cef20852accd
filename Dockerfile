# syntax=docker/dockerfile:1
# Two stages: what is needed to build stays behind. CPU by default; TORCH=gpu takes PyPI's CUDA wheels.
FROM python:3.11-slim-bookworm AS build
ARG TORCH=cpu
WORKDIR /src
RUN python -m venv /opt/precedent
ENV PATH=/opt/precedent/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY constraints.txt ./
RUN if [ "$TORCH" = cpu ]; then \
        pip install -c constraints.txt torch --index-url https://download.pytorch.org/whl/cpu; \
    else pip install -c constraints.txt torch; fi
COPY pyproject.toml hatch_build.py README.md ./
COPY app ./app
COPY migrations ./migrations
RUN pip install -c constraints.txt .

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin precedent \
    && install -d -o precedent -g precedent /var/lib/precedent
COPY --from=build /opt/precedent /opt/precedent
COPY demo/model /opt/precedent/share/demo-model
ENV PATH=/opt/precedent/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HF_HOME=/var/lib/precedent/hub TRITON_CACHE_DIR=/tmp/triton \
    PRECEDENT_STORAGE_DIRECTORY=/var/lib/precedent PRECEDENT_SERVER_HOST=0.0.0.0 \
    PRECEDENT_ENGINE_MODEL=/opt/precedent/share/demo-model PRECEDENT_TELEMETRY_LOG_FORMAT=json
USER 10001
WORKDIR /var/lib/precedent
VOLUME /var/lib/precedent
EXPOSE 8800
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python", "-c", "import httpx; httpx.get('http://127.0.0.1:8800/health/live', timeout=4).raise_for_status()"]
CMD ["precedent", "serve"]
