// The stamp of an engine, stamp.json of build_engine.py: what it was built from, and for which machine.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "bundle.h"

namespace edgeact {

inline constexpr const char* kNotTold = "not told";  // a fact that the machine does not tell

// The engine's folder: the one named, or that of build_engine.py, BUNDLE.engine beside the bundle.
std::filesystem::path engine_folder(const Bundle& bundle, const std::filesystem::path& named);

// Throws Error, which names both values, where the engine is of another ONNX or for another machine than `here`:
// device and tensorrt always, cuda and jetpack where both sides tell them.
void check_stamp(const std::filesystem::path& engine, const Bundle& bundle,
                 const std::map<std::string, std::string>& here);

// "10.3.0" of what getInferLibVersion() returns: 100300, and 8502 before TensorRT 10 (NvInferRuntimeBase.h).
std::string tensorrt_version(int number);

}  // namespace edgeact
