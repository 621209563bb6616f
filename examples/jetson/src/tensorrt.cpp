// TensorRT 8.5 to 10: the engine that build_engine.py built on this device, in one CUDA graph where it can be captured.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <type_traits>
#include <vector>

#include "backend.h"
#include "stamp.h"

namespace edgeact {
namespace {

namespace fs = std::filesystem;

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw Error(std::string("CUDA cannot ") + what + ": " + cudaGetErrorString(status));
}

// What CUDA gave and must get back, such as a stream.
template <typename Handle, cudaError_t (*release)(Handle)>
struct Release {
  using pointer = Handle;
  void operator()(Handle handle) const { release(handle); }
};
template <typename Handle, cudaError_t (*release)(Handle)>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Release<Handle, release>>;

using Stream = Owned<cudaStream_t, cudaStreamDestroy>;
using Graph = Owned<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = Owned<cudaGraphExec_t, cudaGraphExecDestroy>;
using DeviceMemory = Owned<void*, cudaFree>;
using PinnedMemory = Owned<void*, cudaFreeHost>;

class Logger : public nvinfer1::ILogger {
 public:
  void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override {
    if (severity <= Severity::kWARNING) std::fprintf(stderr, "tensorrt: %s\n", message);
  }
};

std::string first_line(const std::string& path) {
  std::ifstream stream(path);
  std::string line;
  std::getline(stream, line);
  line.erase(std::remove(line.begin(), line.end(), '\0'), line.end());  // the device tree's texts end with one
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

// As build_engine.py finds it: of the package, or of the release file.
std::string jetpack() {
  std::string said;
  if (FILE* pipe = popen("dpkg-query -W -f='${Version}' nvidia-jetpack 2>/dev/null", "r")) {
    char text[128];
    if (std::fgets(text, sizeof text, pipe)) said = text;
    if (pclose(pipe) != 0) said.clear();
  }
  return said.empty() ? first_line("/etc/nv_tegra_release") : said;
}

std::map<std::string, std::string> machine() {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "find a GPU");
  int cuda = 0;
  check(cudaRuntimeGetVersion(&cuda), "tell its version");
  const std::string board = first_line("/proc/device-tree/model");
  std::map<std::string, std::string> found{
      {"device", board.empty() ? properties.name : board},
      {"gpu", properties.name},
      {"tensorrt", tensorrt_version(getInferLibVersion())},
      {"cuda", std::to_string(cuda / 1000) + "." + std::to_string(cuda % 1000 / 10)},
      {"jetpack", jetpack()},
  };
  for (auto& [name, value] : found) {
    if (value.empty()) value = kNotTold;
  }
  return found;
}

// Clocks of the GPU in hertz, where Linux tells them, when they are asked for.
void add_clocks(std::map<std::string, std::string>& facts) {
  std::error_code none;
  for (const auto& device : fs::directory_iterator("/sys/class/devfreq", none)) {
    if (device.path().filename().string().find("gpu") == std::string::npos) continue;
    for (const char* name : {"cur_freq", "min_freq", "max_freq"}) {
      const std::string value = first_line((device.path() / name).string());
      if (!value.empty()) facts[std::string(name) + "_hz"] = value;
    }
  }
}

std::vector<char> read_bytes(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::vector<char> bytes{std::istreambuf_iterator<char>(stream), {}};
  if (!stream || bytes.empty()) throw Error(file.string() + " cannot be read: run build_engine.py again");
  return bytes;
}

class TensorRt : public Backend {
 public:
  ~TensorRt() override {
    if (stream_) cudaStreamSynchronize(stream_.get());  // nothing may run when the members go
  }

  void load(const Bundle& bundle, const fs::path& named, int threads) override {
    if (threads > 0) throw Error("--threads is of the openvino backend: this program was built with tensorrt");
    const fs::path folder = engine_folder(bundle, named);
    facts_ = machine();
    check_stamp(folder, bundle, facts_);
    const std::vector<char> plan = read_bytes(folder / "model.plan");
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    if (engine_) context_.reset(engine_->createExecutionContext());
    if (!context_) throw Error("TensorRT cannot load " + (folder / "model.plan").string() + ": it says why above");
    const ClipSpec& spec = bundle.spec;
    check_tensor("clip", nvinfer1::DataType::kUINT8, nvinfer1::TensorIOMode::kINPUT,
                 {1, spec.frames, spec.crop_height, spec.crop_width, 3});
    check_tensor("logits", nvinfer1::DataType::kFLOAT, nvinfer1::TensorIOMode::kOUTPUT, {1, bundle.labels.size()});
    allocate(spec.clip_bytes(), bundle.labels.size() * sizeof(float));
    capture();
  }

  void run(const std::uint8_t* clip, float* logits) override {
    std::memcpy(host_clip_.get(), clip, clip_bytes_);
    if (graph_) {
      check(cudaGraphLaunch(graph_.get(), stream_.get()), "launch the graph");
    } else {
      enqueue();
    }
    check(cudaStreamSynchronize(stream_.get()), "run the engine");
    std::memcpy(logits, host_logits_.get(), logits_bytes_);
  }

  std::string name() const override { return "tensorrt"; }
  std::string version() const override { return facts_.at("tensorrt"); }
  std::string device() const override { return facts_.at("device"); }
  std::optional<int> threads() const override { return std::nullopt; }
  std::optional<std::string> proxy_for() const override { return std::nullopt; }

  std::map<std::string, std::string> facts() const override {
    auto found = facts_;
    found["cuda_graph"] = graph_ ? "yes" : "no: it cannot be captured";
    add_clocks(found);
    return found;
  }

 private:
  void check_tensor(const char* name, nvinfer1::DataType type, nvinfer1::TensorIOMode mode,
                    const std::vector<std::size_t>& wanted) const {
    bool right = engine_->getTensorIOMode(name) == mode && engine_->getTensorDataType(name) == type;
    const nvinfer1::Dims shape = engine_->getTensorShape(name);
    right = right && shape.nbDims == static_cast<int>(wanted.size());
    for (std::size_t i = 0; right && i < wanted.size(); ++i) {
      right = static_cast<std::size_t>(shape.d[i]) == wanted[i];
    }
    if (!right) {
      throw Error(std::string("the engine's '") + name + "' is not what the manifest says: run build_engine.py again");
    }
  }

  // Pinned, since an asynchronous copy of any other memory waits, and cannot be captured.
  void allocate(std::size_t clip_bytes, std::size_t logits_bytes) {
    clip_bytes_ = clip_bytes, logits_bytes_ = logits_bytes;
    host_clip_.reset(pinned(clip_bytes));
    host_logits_.reset(pinned(logits_bytes));
    device_clip_.reset(on_device(clip_bytes));
    device_logits_.reset(on_device(logits_bytes));
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a stream");
    stream_.reset(stream);
    if (!context_->setTensorAddress("clip", device_clip_.get()) ||
        !context_->setTensorAddress("logits", device_logits_.get())) {
      throw Error("TensorRT does not take the memory of clip and logits: it says why above");
    }
  }

  static void* pinned(std::size_t bytes) {
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "pin memory");
    return memory;
  }

  static void* on_device(std::size_t bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "allocate memory");
    return memory;
  }

  void enqueue() {
    check(cudaMemcpyAsync(device_clip_.get(), host_clip_.get(), clip_bytes_, cudaMemcpyHostToDevice, stream_.get()),
          "copy the clip");
    if (!context_->enqueueV3(stream_.get())) throw Error("TensorRT cannot run the engine: it says why above");
    check(cudaMemcpyAsync(host_logits_.get(), device_logits_.get(), logits_bytes_, cudaMemcpyDeviceToHost,
                          stream_.get()),
          "copy the logits");
  }

  // One launch for the whole network. An engine that cannot be captured (one with parts on the DLA, or that waits for
  // the host) runs launch by launch; facts() says which it was.
  void capture() {
    std::memset(host_clip_.get(), 0, clip_bytes_);
    enqueue();  // TensorRT's first run sets up what a capture must not
    check(cudaStreamSynchronize(stream_.get()), "run the engine");
    check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal), "begin a capture");
    try {
      enqueue();
    } catch (const Error&) {  // the end of the capture says so too
    }
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream_.get(), &graph);
    const Graph captured(graph);
    if (ended == cudaSuccess && graph != nullptr &&
        cudaGraphInstantiateWithFlags(&executable, graph, 0) == cudaSuccess) {
      graph_.reset(executable);
    }
    cudaGetLastError();  // a capture that failed is no error of the next call
  }

  Logger logger_;  // outlives what logs to it: members go in the reverse order
  std::map<std::string, std::string> facts_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::unique_ptr<nvinfer1::IExecutionContext> context_;
  std::size_t clip_bytes_ = 0, logits_bytes_ = 0;
  PinnedMemory host_clip_, host_logits_;
  DeviceMemory device_clip_, device_logits_;
  Stream stream_;
  GraphExec graph_;
};

}  // namespace

std::unique_ptr<Backend> make_backend() { return std::make_unique<TensorRt>(); }

}  // namespace edgeact
