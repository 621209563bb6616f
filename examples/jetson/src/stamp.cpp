#include "stamp.h"

namespace edgeact {

namespace fs = std::filesystem;

fs::path engine_folder(const Bundle& bundle, const fs::path& named) {
  return named.empty() ? fs::path(bundle.folder.string() + ".engine") : named;
}

void check_stamp(const fs::path& engine, const Bundle& bundle, const std::map<std::string, std::string>& here) {
  const fs::path file = engine / "stamp.json";
  const std::string advice =
      ": run `python3 " + (bundle.folder / "build_engine.py").string() + "` on this machine, which takes minutes";
  if (!fs::is_regular_file(file)) throw Error(engine.string() + " holds no engine (stamp.json)" + advice);
  const auto stamp = read_json(file);
  const auto refuse = [&](const std::string& what, const std::string& there, const std::string& wanted) {
    throw Error("the engine in " + engine.string() + " is for the " + what + " '" + there + "', and here it is '" +
                wanted + "'" + advice);
  };
  const auto onnx = field<std::string>(stamp, "onnx_sha256", file);
  if (onnx != bundle.onnx_sha256) refuse("model.onnx with the sha256", onnx, bundle.onnx_sha256);
  const auto facts = field<nlohmann::json>(stamp, "facts", file);
  for (const char* name : {"device", "tensorrt", "cuda", "jetpack"}) {
    const auto there = field<std::string>(facts, name, file);
    const std::string& wanted = here.at(name);
    const bool must = name == std::string("device") || name == std::string("tensorrt");
    if (there != wanted && (must || (there != kNotTold && wanted != kNotTold))) refuse(name, there, wanted);
  }
}

std::string tensorrt_version(int number) {
  const int major = number >= 100000 ? 10000 : 1000;
  return std::to_string(number / major) + "." + std::to_string(number % major / 100) + "." +
         std::to_string(number % 100);
}

}  // namespace edgeact
