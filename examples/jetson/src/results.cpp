#include "results.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <fstream>

namespace edgeact {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr double kExactDb = 150;

std::string now() {
  const std::time_t seconds = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

template <typename Value>
json or_null(const std::optional<Value>& value) {
  return value ? json(*value) : json(nullptr);
}

}  // namespace

double sqnr_db(const std::vector<float>& reference, const std::vector<float>& found) {
  double signal = 0, noise = 0;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    const double wanted = reference[i], difference = wanted - found[i];
    signal += wanted * wanted;
    noise += difference * difference;
  }
  if (noise == 0) return kExactDb;
  return signal > 0 ? std::min(10 * std::log10(signal / noise), kExactDb) : -kExactDb;
}

void check_results_file(const fs::path& file, const Bundle& bundle) {
  const fs::path folder = fs::absolute(file).lexically_normal().parent_path();
  if (!fs::is_directory(folder)) throw Error("--results " + file.string() + ": its folder is not there");
  if (fs::is_directory(file)) throw Error("--results " + file.string() + " is a folder: give a file");
  const auto from_bundle = fs::canonical(folder).lexically_relative(bundle.folder);
  if (*from_bundle.begin() != "..") {
    throw Error("--results " + file.string() + " lies inside the bundle, which must stay as it was exported");
  }
}

void write_results(const fs::path& file, const Bundle& bundle, const std::vector<GoldenClip>& clips,
                   const Measured& measured, const Backend& backend) {
  json golden = json::array();
  for (std::size_t i = 0; i < clips.size(); ++i) {
    golden.push_back({{"id", clips[i].id}, {"logits", measured.logits[i]}});
  }
  const json runtime = {{"name", backend.name()},
                        {"version", backend.version()},
                        {"threads", or_null(backend.threads())},
                        {"proxy_for", or_null(backend.proxy_for())}};
  const json results = {
      {"schema", 1},
      {"bundle", {{"name", bundle.name}, {"digest", bundle.digest}}},
      {"created", now()},
      {"runtime", runtime},
      {"device", {{"name", backend.device()}, {"facts", backend.facts()}}},
      {"golden", golden},
      {"latency_ms", measured.latency_ms},
      {"notes", {"measured by edgeact_jetson (examples/jetson): from the clip in memory to the logits in memory"}},
  };
  const fs::path partial = file.string() + ".part";
  std::ofstream stream(partial);
  stream << results.dump(1) << '\n';
  stream.close();
  if (!stream) {
    std::error_code ignored;
    fs::remove(partial, ignored);
    throw Error(file.string() + " cannot be written");
  }
  fs::rename(partial, file);
}

}  // namespace edgeact
