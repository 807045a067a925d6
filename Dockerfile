# Images of the services; docs/images.md says how they are built, also without a network.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Given to pip: --no-index --find-links wheelhouse installs from files alone.
ARG PIP_ARGS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_CONSTRAINT=/src/constraints.txt
WORKDIR /src
COPY . .
RUN python -m venv /opt/metroculus \
    && /opt/metroculus/bin/pip install ${PIP_ARGS} --no-build-isolation "setuptools>=65" wheel

FROM build AS build-metroculus
ARG PIP_ARGS=""
RUN /opt/metroculus/bin/pip install ${PIP_ARGS} --no-build-isolation ".[all]"

FROM build AS build-rest-api
ARG PIP_ARGS=""
RUN /opt/metroculus/bin/pip install ${PIP_ARGS} --no-build-isolation ".[etcd,mongo]"

# Neither store nor directory nor queue: the gateway and the agent.
FROM build AS build-alone
ARG PIP_ARGS=""
RUN /opt/metroculus/bin/pip install ${PIP_ARGS} --no-build-isolation ".[etcd]"

FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="Metroculus" \
      org.opencontainers.image.description="What every Kubernetes cluster, namespace and workload costs, to the cent." \
      org.opencontainers.image.version="${VERSION}"
ENV PATH=/opt/metroculus/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 DATA_DIR=/data
RUN install --directory --owner=65532 --group=65532 --mode=0700 /data
USER 65532:65532
WORKDIR /data
VOLUME /data

# The API, the worker, and both in one process: `serve`, `worker`, `serve --worker`.
FROM runtime AS metroculus
ENV METROCULUS_LISTEN=0.0.0.0:8969 WORKER_LISTEN=0.0.0.0:8970
COPY --from=build-metroculus /opt/metroculus /opt/metroculus
EXPOSE 8969 8970
ENTRYPOINT ["metroculus"]
CMD ["serve"]

# Without the store: it speaks to Metroculus and to the directory alone.
FROM runtime AS rest-api
ENV REST_API_LISTEN=0.0.0.0:8999
COPY --from=build-rest-api /opt/metroculus /opt/metroculus
EXPOSE 8999
ENTRYPOINT ["rest-api"]
CMD ["serve"]

# The gateway, to which tenants' agents push.
FROM runtime AS diproxy
ENV DIPROXY_LISTEN=0.0.0.0:8935
COPY --from=build-alone /opt/metroculus /opt/metroculus
EXPOSE 8935
ENTRYPOINT ["diproxy"]
CMD ["serve"]

# The tenant's agent.
FROM runtime AS agent
ENV METROCULUS_AGENT_LISTEN=0.0.0.0:8936
COPY --from=build-alone /opt/metroculus /opt/metroculus
EXPOSE 8936
ENTRYPOINT ["metroculus"]
CMD ["agent"]
