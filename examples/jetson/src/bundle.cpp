#include "bundle.h"

#include <cmath>
#include <fstream>

#include "npy.h"

namespace edgeact {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kSchema = 1;
constexpr std::int64_t kMostPixels = 65536;  // of a side, and frames: as ClipSpec allows

std::size_t count_of(const json& spec, const char* name, const fs::path& file) {
  const auto value = field<json>(spec, name, file);
  if (!value.is_number_integer() || value.get<std::int64_t>() < 1 || value.get<std::int64_t>() > kMostPixels) {
    throw Error(file.string() + " has a spec whose '" + name + "' is " + value.dump() + ", not from 1 to 65536");
  }
  return static_cast<std::size_t>(value.get<std::int64_t>());
}

ClipSpec read_spec(const json& fields, const fs::path& file) {
  ClipSpec spec;
  spec.frames = count_of(fields, "frames", file);
  spec.frame_stride = count_of(fields, "frame_stride", file);
  spec.short_side = count_of(fields, "short_side", file);
  spec.crop_height = count_of(fields, "crop_height", file);
  spec.crop_width = count_of(fields, "crop_width", file);
  if (!field<json>(fields, "sample_fps", file).is_null()) {
    spec.sample_fps = field<double>(fields, "sample_fps", file);
    if (!(*spec.sample_fps > 0) || !std::isfinite(*spec.sample_fps)) {
      throw Error(file.string() + " has a spec whose 'sample_fps' is no rate");
    }
  }
  if (spec.crop_height > spec.short_side || spec.crop_width > spec.short_side) {
    throw Error(file.string() + " has a spec that crops more than its short_side");
  }
  return spec;
}

// `folder / name`, refused where the name would leave the folder.
fs::path inside(const fs::path& folder, const std::string& name) {
  const fs::path path(name);
  bool leaves = name.empty() || path.is_absolute();
  for (const fs::path& part : path) leaves = leaves || part == "..";
  if (leaves) throw Error(folder.string() + " points outside its folder, at '" + name + "': refused");
  return folder / path;
}

}  // namespace

json read_json(const fs::path& file) {
  std::ifstream stream(file);
  if (!stream || !fs::is_regular_file(file)) throw Error(file.string() + " is not a file that opens");
  json found = json::parse(stream, nullptr, false);
  if (found.is_discarded()) throw Error(file.string() + " is not JSON: copy it again");
  return found;
}

Bundle open_bundle(const fs::path& folder) {
  const fs::path file = folder / "manifest.json";
  if (!fs::is_regular_file(file)) {
    throw Error(folder.string() + " is not a bundle: it holds no manifest.json; `edgeact export` writes one");
  }
  const json manifest = read_json(file);
  if (const int schema = field<int>(manifest, "schema", file); schema != kSchema) {
    throw Error(file.string() + " has schema " + std::to_string(schema) + ", this program reads " +
                std::to_string(kSchema));
  }
  Bundle bundle;
  bundle.folder = fs::canonical(folder);
  bundle.name = field<std::string>(manifest, "name", file);
  bundle.digest = field<std::string>(manifest, "digest", file);
  bundle.target = field<std::string>(manifest, "target", file);
  const auto files = field<json>(manifest, "files", file);
  if (bundle.target != "jetson" || !files.is_object() || !files.contains("model.onnx")) {
    throw Error(folder.string() + " is a bundle for '" + bundle.target + "', and this program runs 'jetson' ones: " +
                "`edgeact export --target jetson` writes one");
  }
  bundle.onnx_sha256 = field<std::string>(files, "model.onnx", file);
  bundle.labels = field<std::vector<std::string>>(manifest, "labels", file);
  if (bundle.labels.empty()) throw Error(file.string() + " has no labels: copy or export the bundle again");
  bundle.spec = read_spec(field<json>(manifest, "spec", file), file);
  bundle.min_sqnr_db = field<double>(field<json>(manifest, "gates", file), "min_sqnr_db", file);
  return bundle;
}

std::vector<GoldenClip> read_golden(const Bundle& bundle) {
  const fs::path folder = bundle.folder / "golden", index = folder / "golden.json";
  const auto entries = read_json(index);
  Npy logits(folder / "logits.npy", "<f4", 2);
  const std::size_t classes = bundle.labels.size();
  if (!entries.is_array() || entries.empty() || logits.shape() != std::vector{entries.size(), classes}) {
    throw Error(folder.string() + " is not a golden set: " + in_words(logits.shape()) + " logits for " +
                std::to_string(entries.size()) + " clips of " + std::to_string(classes) + " labels; copy it again");
  }
  const ClipSpec& spec = bundle.spec;
  const std::vector<std::size_t> wanted{spec.frames, spec.crop_height, spec.crop_width, 3};
  std::vector<GoldenClip> clips;
  for (const auto& entry : entries) {
    GoldenClip clip;
    clip.id = field<std::string>(entry, "id", index);
    const fs::path file = inside(folder, field<std::string>(entry, "frames", index));
    Npy frames(file, "|u1", 4);
    if (frames.shape() != wanted) {
      throw Error(file.string() + " is " + in_words(frames.shape()) + ", and clips are " + in_words(wanted));
    }
    clip.clip.resize(spec.clip_bytes());
    frames.read(clip.clip.data(), clip.clip.size());
    clip.logits.resize(classes);
    logits.read(clip.logits.data(), classes * sizeof(float));
    clips.push_back(std::move(clip));
  }
  return clips;
}

}  // namespace edgeact
