// What is wrong with a bundle, an engine, a video or a command, in one line.
#pragma once

#include <stdexcept>

namespace edgeact {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace edgeact
