// Where frames come from: a camera, a video file or a GStreamer pipeline through OpenCV, or a .npy of frames.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "clips.h"

namespace edgeact {

class Frames {
 public:
  virtual ~Frames() = default;

  // The next frame; none after the last one. A camera has no last one.
  virtual std::optional<Frame> next() = 0;
};

// `source` is the number of a camera, a file, a URL or a pipeline; `fps` is the rate of a .npy, 0 where none was given.
// Throws Error where it does not open.
std::unique_ptr<Frames> open_frames(const std::string& source, double fps);

}  // namespace edgeact
