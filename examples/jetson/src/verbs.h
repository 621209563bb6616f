// What the program does; each returns its exit status.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

namespace edgeact {

struct Options {
  std::filesystem::path bundle, engine, results;
  std::string source;
  std::size_t rounds = 30, hop = 0, top = 3;
  int threads = 0;
  double fps = 0;
};

// The golden clips against their reference: 0 where they hold the bundle's gate, 1 where they fall short.
int golden(const Options& options);

// Labels with scores for each window of a camera or a video: 0.
int run(const Options& options);

}  // namespace edgeact
