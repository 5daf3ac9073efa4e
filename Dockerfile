# mgk with everything that the default run needs. For a CPU:
#     docker build -t mgk .
# For a CUDA GPU (torch's ordinary wheels bring the CUDA libraries; the host needs NVIDIA's container toolkit):
#     docker build -t mgk:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
FROM python:3.11-slim

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple torch==2.13.0

WORKDIR /opt/mgk
COPY requirements/run.txt requirements/run.txt
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements/run.txt
COPY pyproject.toml README.md LICENSE ./
COPY mgk mgk
COPY mgk_core mgk_core
COPY plugins plugins
COPY phases phases
COPY cli cli
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# Runs are written below /work, which is mounted from outside.
RUN useradd --create-home mgk && mkdir /work && chown mgk /work
USER mgk
WORKDIR /work
ENTRYPOINT ["mgk"]
CMD ["--help"]
