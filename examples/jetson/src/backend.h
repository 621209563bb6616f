// What runs the network: tensorrt.cpp or openvino.cpp, chosen by CMake.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "bundle.h"

namespace edgeact {

class Backend {
 public:
  virtual ~Backend() = default;

  // Throws Error where the network cannot be loaded on this machine. Called once, before anything else.
  // `engine` is empty where none was named; `threads` is 0 for every core.
  virtual void load(const Bundle& bundle, const std::filesystem::path& engine, int threads) = 0;

  // One clip, T x H x W x RGB, to one logit for each label.
  virtual void run(const std::uint8_t* clip, float* logits) = 0;

  virtual std::string name() const = 0;
  virtual std::string version() const = 0;
  virtual std::string device() const = 0;

  // CPU threads; none on an accelerator.
  virtual std::optional<int> threads() const = 0;

  // The runtime that this one stands in for.
  virtual std::optional<std::string> proxy_for() const = 0;

  // What a reader of the results should know besides.
  virtual std::map<std::string, std::string> facts() const = 0;
};

std::unique_ptr<Backend> make_backend();

}  // namespace edgeact
