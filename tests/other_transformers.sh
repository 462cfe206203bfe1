#!/usr/bin/env bash
# Installs versions of transformers for the tests, each into a folder of its own below FOLDER, and
# prints what SAVIMAE_TEST_TRANSFORMERS must be. PyTorch and NumPy are those of the environment.
#     tests/other_transformers.sh FOLDER
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)

install() { # VERSION REQUIREMENT…: with what the environment has not, or has in another version
  python3 -m pip install -q --disable-pip-version-check --no-deps --upgrade \
    --target "$folder/$1" "transformers==$1" "${@:2}" >&2
}

# q_bias and v_bias; the last of 4.x
install 4.57.6 huggingface-hub==0.36.2 tokenizers==0.22.2 \
  requests urllib3 charset-normalizer certifi idna
# query.bias, key.bias and value.bias, and zeros for q_bias and v_bias
install 5.16.1 huggingface-hub==1.33.0 tokenizers==0.23.3 httpx httpcore h11 anyio certifi idna
# both; the newest
install 5.24.0 huggingface-hub==2.4.0 tokenizers==0.23.3
echo "$folder/4.57.6:$folder/5.16.1:$folder/5.24.0"
