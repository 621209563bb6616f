#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "backend.h"
#include "bundle.h"
#include "clips.h"
#include "frames.h"
#include "verbs.h"

namespace edgeact {
namespace {

std::vector<double> softmax(const std::vector<float>& logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  std::vector<double> shares;
  for (const float logit : logits) shares.push_back(std::exp(logit - most));
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  for (double& share : shares) share /= sum;
  return shares;
}

void print(const Window& window, const std::vector<double>& shares, const Bundle& bundle, std::size_t top) {
  std::vector<std::size_t> order(shares.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return shares[a] > shares[b]; });
  std::printf("%7.2f - %7.2f s", window.start_s, window.end_s);
  for (std::size_t i = 0; i < std::min(top, order.size()); ++i) {
    std::printf("  %s %.3f", bundle.labels[order[i]].c_str(), shares[order[i]]);
  }
  std::printf("\n");
  std::fflush(stdout);  // a camera's reader waits for each line
}

}  // namespace

int run(const Options& options) {
  const Bundle bundle = open_bundle(options.bundle);
  const auto frames = open_frames(options.source, options.fps);
  const auto backend = make_backend();
  backend->load(bundle, options.engine, options.threads);
  std::vector<float> logits(bundle.labels.size());
  const std::size_t hop = options.hop > 0 ? options.hop : std::max<std::size_t>(1, bundle.spec.frames / 2);
  std::size_t windows = 0;
  Windows sliding(bundle.spec, hop, [&](const Window& window) {
    backend->run(window.clip.data(), logits.data());
    print(window, softmax(logits), bundle, options.top);
    ++windows;
  });
  while (auto frame = frames->next()) sliding.add(std::move(*frame));
  sliding.finish();
  if (windows == 0) throw Error(options.source + ": it gives no frame");
  return 0;
}

}  // namespace edgeact
