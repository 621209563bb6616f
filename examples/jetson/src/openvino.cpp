// OpenVINO on the CPU, from the bundle's own model.onnx: it stands in for TensorRT, for the numbers alone.
#include <algorithm>
#include <openvino/openvino.hpp>
#include <thread>

#include "backend.h"

namespace edgeact {
namespace {

class OpenVino : public Backend {
 public:
  void load(const Bundle& bundle, const std::filesystem::path& engine, int threads) override {
    if (!engine.empty()) throw Error("--engine is of the tensorrt backend: this program was built with openvino");
    try {
      compile(bundle, threads);
    } catch (const ov::Exception& error) {
      throw Error("OpenVINO cannot load " + (bundle.folder / "model.onnx").string() + ": " + error.what());
    }
  }

  void run(const std::uint8_t* clip, float* logits) override {
    // The runtime reads the caller's clip, which it does not change.
    request_.set_input_tensor(ov::Tensor(ov::element::u8, shape_, const_cast<std::uint8_t*>(clip)));
    request_.infer();
    std::copy_n(request_.get_output_tensor().data<const float>(), classes_, logits);
  }

  std::string name() const override { return "openvino"; }

  std::string version() const override {  // without the build's hash
    const std::string build = ov::get_openvino_version().buildNumber;
    return build.substr(0, build.find('-'));
  }

  std::string device() const override {
    const auto name = core_.get_property("CPU", ov::device::full_name);
    const std::size_t end = name.find_last_not_of(' ');
    return end == std::string::npos ? "CPU" : name.substr(0, end + 1);
  }

  std::optional<int> threads() const override { return threads_; }
  std::optional<std::string> proxy_for() const override { return "tensorrt"; }
  std::map<std::string, std::string> facts() const override { return {{"inference_precision", "f32"}}; }

 private:
  void compile(const Bundle& bundle, int threads) {
    const ClipSpec& spec = bundle.spec;
    threads_ = threads > 0 ? threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    const auto model = core_.read_model((bundle.folder / "model.onnx").string());
    const ov::PartialShape clip{1, static_cast<int>(spec.frames), static_cast<int>(spec.crop_height),
                                static_cast<int>(spec.crop_width), 3};
    const ov::PartialShape logits{1, static_cast<int>(bundle.labels.size())};
    check(model->inputs(), ov::element::u8, clip, "input");
    check(model->outputs(), ov::element::f32, logits, "output");
    // int8 as the Q and DQ of the ONNX say, in float between them, which edgeact's own stand-in does too: what OpenVINO
    // makes of them for its int8 kernels took the packaged network from 22.7 dB to 9.6 dB (2026.4.1, AVX-512 VNNI).
    const std::pair<std::string, ov::Any> as_written{"LP_TRANSFORMS_MODE", false};
    request_ = core_
                   .compile_model(model, "CPU", ov::hint::inference_precision(ov::element::f32),
                                  ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                                  ov::inference_num_threads(threads_), as_written)
                   .create_infer_request();
    shape_ = clip.to_shape();
    classes_ = bundle.labels.size();
  }

  template <typename Ports>
  static void check(const Ports& ports, ov::element::Type type, const ov::PartialShape& shape, const char* what) {
    if (ports.size() != 1 || ports[0].get_element_type() != type || !ports[0].get_partial_shape().compatible(shape)) {
      throw Error("model.onnx has another " + std::string(what) + " than the manifest's spec and labels say: one of " +
                  type.get_type_name() + " " + shape.to_string() + " was expected; export the bundle again");
    }
  }

  ov::Core core_;
  ov::InferRequest request_;
  ov::Shape shape_;
  std::size_t classes_ = 0;
  int threads_ = 0;
};

}  // namespace

std::unique_ptr<Backend> make_backend() { return std::make_unique<OpenVino>(); }

}  // namespace edgeact
