// A bundle of edgeact: what its manifest says, and its golden clips with the logits that they must give.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "error.h"

namespace edgeact {

// How a video becomes a clip (edgeact/clip.py): one or the other of frame_stride and sample_fps.
struct ClipSpec {
  std::size_t frames = 0;
  std::size_t frame_stride = 0;
  std::optional<double> sample_fps;
  std::size_t short_side = 0, crop_height = 0, crop_width = 0;

  std::size_t frame_bytes() const { return crop_height * crop_width * 3; }
  std::size_t clip_bytes() const { return frames * frame_bytes(); }
};

struct Bundle {
  std::filesystem::path folder;
  std::string name, digest, target;
  std::string onnx_sha256;
  std::vector<std::string> labels;
  ClipSpec spec;
  double min_sqnr_db = 0;
};

struct GoldenClip {
  std::string id;
  std::vector<std::uint8_t> clip;  // T x H x W x RGB
  std::vector<float> logits;       // of the full-precision PyTorch network
};

// JSON of a file. Throws Error where there is none.
nlohmann::json read_json(const std::filesystem::path& file);

// The field `name` of an object that `file` holds. Throws Error where it is absent or of another type.
template <typename Value>
Value field(const nlohmann::json& object, const char* name, const std::filesystem::path& file) {
  try {
    return object.at(name).get<Value>();
  } catch (const nlohmann::json::exception&) {
    throw Error(file.string() + " has no usable '" + name + "': copy or export the bundle again");
  }
}

// Checks the manifest; the files' hashes are for `edgeact validate` and build_engine.py to check.
Bundle open_bundle(const std::filesystem::path& folder);

std::vector<GoldenClip> read_golden(const Bundle& bundle);

}  // namespace edgeact
