// Frames to clips, as edgeact/clip.py and edgeact/video.py do it: sampled on a grid, resized, cropped, in windows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "bundle.h"

namespace edgeact {

struct Frame {
  std::size_t height = 0, width = 0;
  std::vector<std::uint8_t> rgb;  // H x W x RGB
  double seconds = 0;             // from any start; later frames have later times
};

// A clip, T x H x W x RGB, and the time that it covers, in seconds from the first frame.
struct Window {
  double start_s = 0, end_s = 0;
  std::vector<std::uint8_t> clip;
};

// The centre crop of a frame whose shorter side was resized to spec.short_side: bilinear, half-pixel centres, no
// antialias, in fixed point. Equal to edgeact.clip.resize_and_crop to the bit.
std::vector<std::uint8_t> resize_and_crop(const Frame& frame, const ClipSpec& spec);

// Windows of T grid frames, `hop` of them apart. By frame_stride the grid is every k-th frame; by sample_fps a grid
// time shows the last frame before it, so a frame is held back until the next one has come:
//
//     time   |----|----|----|--
//     frames A     B  C      D
//     grid   A    A    C    C
class Windows {
 public:
  using Ready = std::function<void(const Window&)>;

  Windows(const ClipSpec& spec, std::size_t hop, Ready ready) : spec_(spec), hop_(hop), ready_(std::move(ready)) {}

  void add(Frame frame);

  // After the last frame: the window that reaches the end; a video shorter than a clip is looped.
  void finish();

 private:
  struct Sampled {
    double seconds;
    std::vector<std::uint8_t> pixels;
  };

  double grid_time(std::size_t index) const;
  void show_held(std::size_t index);
  void push(Sampled sampled);
  void emit() const;

  ClipSpec spec_;
  std::size_t hop_;
  Ready ready_;
  std::deque<Sampled> recent_;
  Frame held_;
  std::vector<std::uint8_t> held_pixels_;  // of held_, once it was shown
  double first_s_ = 0;
  std::size_t frames_ = 0, shown_ = 0, since_window_ = 0, windows_ = 0;
};

}  // namespace edgeact
