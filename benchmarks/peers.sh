#!/usr/bin/env bash
# Sets up llama.cpp's own tools beside the project, to be compared with: benchmarks/peers.sh DIR [TARGET ...]
#
#   DIR/bin/                             the targets (default: llama-quantize llama-bench llama-server), compiled from
#                                        the very sources that the pinned llama-cpp-python release carries
#   DIR/llama.cpp/convert_hf_to_gguf.py  run with DIR/venv/bin/python (torch, transformers, gguf)
#   DIR/venv-genai                       the target `genai`: onnxruntime-genai's builder and runtime
#
# About 10 minutes on 2 cores. A second run does only what is missing.
set -euo pipefail
dir=$(mkdir -p "$1" && cd "$1" && pwd)
shift
targets=("$@")
[ "${#targets[@]}" -gt 0 ] || targets=(llama-quantize llama-bench llama-server)
version=0.3.36
cd "$dir"
if [ ! -d llama.cpp ]; then
  python3 -m pip download --quiet --no-deps --no-binary :all: --dest source "llama-cpp-python==$version"
  tar xzf "source/llama_cpp_python-$version.tar.gz" -C source
  mv "source/llama_cpp_python-$version/vendor/llama.cpp" llama.cpp
fi
if [ ! -x venv/bin/python ]; then
  python3 -m venv venv
  venv/bin/python -m pip install --quiet cmake ninja torch==2.13.0 "transformers>=4.57,<6" gguf==0.19.0 sentencepiece protobuf
fi
missing=()
for target in "${targets[@]}"; do
  if [ "$target" = genai ]; then
    [ -x venv-genai/bin/python ] || python3 -m venv venv-genai
    venv-genai/bin/python -m pip install --quiet onnxruntime==1.31.1 onnxruntime-genai==0.18.0 onnx==1.23.2 onnx-ir \
      torch==2.13.0 transformers==5.23.0
    continue
  fi
  [ -x "build/bin/$target" ] || missing+=("$target")
done
if [ "${#missing[@]}" -gt 0 ]; then
  # GCC before 13 loads half of an AMX tile configuration, and llama.cpp dies of it (edgeqwen/engine_source.py)
  no_amx="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
  # shellcheck disable=SC2086 # three words
  if c++ $no_amx -x c++ -fsyntax-only /dev/null 2>/dev/null; then
    export CFLAGS="${CFLAGS:-} $no_amx" CXXFLAGS="${CXXFLAGS:-} $no_amx"
  fi
  PATH="$dir/venv/bin:$PATH" cmake -S llama.cpp -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DLLAMA_CURL=OFF \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_BUILD_WEBUI=OFF >build.log 2>&1
  PATH="$dir/venv/bin:$PATH" cmake --build build --target "${missing[@]}" >>build.log 2>&1
fi
ln -sfn build/bin bin
echo "peers are in $dir"
