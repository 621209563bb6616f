#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>

#include "backend.h"
#include "bundle.h"
#include "results.h"
#include "verbs.h"

namespace edgeact {
namespace {

using Clock = std::chrono::steady_clock;

// Every clip once, which warms up, and then `rounds` timed runs that take the clips in turn.
Measured measure(Backend& backend, const std::vector<GoldenClip>& clips, std::size_t rounds) {
  Measured measured;
  for (const GoldenClip& clip : clips) {
    auto& logits = measured.logits.emplace_back(clip.logits.size());
    backend.run(clip.clip.data(), logits.data());
    if (!std::all_of(logits.begin(), logits.end(), [](float value) { return std::isfinite(value); })) {
      throw Error(backend.name() + " gives logits that are not finite for the golden clip " + clip.id);
    }
  }
  std::vector<float> logits(clips.front().logits.size());
  for (std::size_t i = 0; i < rounds; ++i) {
    const auto start = Clock::now();
    backend.run(clips[i % clips.size()].clip.data(), logits.data());
    measured.latency_ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  return measured;
}

const std::string& best(const std::vector<float>& logits, const Bundle& bundle) {
  return bundle.labels[static_cast<std::size_t>(std::max_element(logits.begin(), logits.end()) - logits.begin())];
}

double percentile(std::vector<double> values, double share) {  // of numpy: between the two nearest
  std::sort(values.begin(), values.end());
  const double at = share * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(at), above = std::min(below + 1, values.size() - 1);
  return values[below] + (values[above] - values[below]) * (at - static_cast<double>(below));
}

void print(const Bundle& bundle, const std::vector<GoldenClip>& clips, const Measured& measured,
           const Backend& backend) {
  int width = 4;
  for (const GoldenClip& clip : clips) width = std::max(width, static_cast<int>(clip.id.size()));
  std::printf("%-*s  %9s  %-24s %s\n", width, "clip", "SQNR", "reference", backend.name().c_str());
  for (std::size_t i = 0; i < clips.size(); ++i) {
    std::printf("%-*s  %6.1f dB  %-24s %s\n", width, clips[i].id.c_str(), sqnr_db(clips[i].logits, measured.logits[i]),
                best(clips[i].logits, bundle).c_str(), best(measured.logits[i], bundle).c_str());
  }
  const auto& times = measured.latency_ms;
  std::printf("%s %s on %s: p50 %.2f ms, p95 %.2f ms of %zu runs%s\n", backend.name().c_str(),
              backend.version().c_str(), backend.device().c_str(), percentile(times, 0.5), percentile(times, 0.95),
              times.size(), backend.proxy_for() ? ", in place of tensorrt: a proxy, and not its latency" : "");
}

}  // namespace

int golden(const Options& options) {
  const Bundle bundle = open_bundle(options.bundle);
  if (!options.results.empty()) check_results_file(options.results, bundle);
  const std::vector<GoldenClip> clips = read_golden(bundle);
  const auto backend = make_backend();
  backend->load(bundle, options.engine, options.threads);
  const Measured measured = measure(*backend, clips, options.rounds);
  print(bundle, clips, measured, *backend);
  if (!options.results.empty()) write_results(options.results, bundle, clips, measured, *backend);

  std::vector<float> reference, found;
  for (std::size_t i = 0; i < clips.size(); ++i) {
    reference.insert(reference.end(), clips[i].logits.begin(), clips[i].logits.end());
    found.insert(found.end(), measured.logits[i].begin(), measured.logits[i].end());
  }
  const double db = sqnr_db(reference, found);
  const bool held = db >= bundle.min_sqnr_db;
  std::printf("%s: all clips %.1f dB, at least %g wanted\n", held ? "held" : "fell short", db, bundle.min_sqnr_db);
  return held ? 0 : 1;
}

}  // namespace edgeact
