#include "clips.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace edgeact {
namespace {

// Weights of 11 bits, the precision of OpenCV's INTER_LINEAR, as in edgeact/clip.py.
constexpr int kWeightBits = 11;
// Containers round timestamps to their tick; a frame this little after a grid time counts as shown.
constexpr double kToleranceS = 1e-3;

struct Tap {
  std::size_t left, right;
  std::int32_t weight;  // of the right one
};

// Output pixel i looks at (i + 0.5) * size_in / size_out - 0.5, clamped to the image.
std::vector<Tap> taps(std::size_t size_in, std::size_t size_out, std::size_t first, std::size_t count) {
  const double scale = static_cast<double>(size_in) / static_cast<double>(size_out);
  std::vector<Tap> found;
  for (std::size_t i = first; i < first + count; ++i) {
    const double looked = (static_cast<double>(i) + 0.5) * scale - 0.5;
    const double position = std::clamp(looked, 0.0, static_cast<double>(size_in - 1));
    const double left = std::floor(position);
    const auto at = static_cast<std::size_t>(left);
    const auto weight = static_cast<std::int32_t>(std::nearbyint((position - left) * (1 << kWeightBits)));
    found.push_back({at, std::min(at + 1, size_in - 1), weight});
  }
  return found;
}

// The longer side, rounded half up, where the shorter one becomes short_side.
std::size_t longer_side(std::size_t longer, std::size_t shorter, std::size_t short_side) {
  return std::max(short_side, (2 * longer * short_side + shorter) / (2 * shorter));
}

// One channel between two neighbours of a row: at most 255 * 2^11.
std::int32_t across(const std::uint8_t* row, const Tap& x, std::size_t channel) {
  const std::int32_t near = row[x.left * 3 + channel], far = row[x.right * 3 + channel];
  return near * (1 << kWeightBits) + (far - near) * x.weight;
}

}  // namespace

std::vector<std::uint8_t> resize_and_crop(const Frame& frame, const ClipSpec& spec) {
  const bool wide = frame.height <= frame.width;
  const std::size_t height = wide ? spec.short_side : longer_side(frame.height, frame.width, spec.short_side);
  const std::size_t width = wide ? longer_side(frame.width, frame.height, spec.short_side) : spec.short_side;
  const auto ys = taps(frame.height, height, (height - spec.crop_height) / 2, spec.crop_height);
  const auto xs = taps(frame.width, width, (width - spec.crop_width) / 2, spec.crop_width);
  std::vector<std::uint8_t> pixels;
  pixels.reserve(spec.frame_bytes());
  for (const Tap& y : ys) {
    const std::uint8_t* upper = frame.rgb.data() + y.left * frame.width * 3;
    const std::uint8_t* lower = frame.rgb.data() + y.right * frame.width * 3;
    for (const Tap& x : xs) {
      for (std::size_t channel = 0; channel < 3; ++channel) {
        const std::int32_t above = across(upper, x, channel), below = across(lower, x, channel);
        // At most 255 * 2^22, which int32 holds.
        const std::int32_t blend = above * (1 << kWeightBits) + (below - above) * y.weight;
        pixels.push_back(static_cast<std::uint8_t>((blend + (1 << (2 * kWeightBits - 1))) >> (2 * kWeightBits)));
      }
    }
  }
  return pixels;
}

double Windows::grid_time(std::size_t index) const { return static_cast<double>(index) / *spec_.sample_fps; }

void Windows::add(Frame frame) {
  if (frames_ == 0) first_s_ = frame.seconds;
  if (!spec_.sample_fps) {
    if (frames_ % spec_.frame_stride == 0) push({frame.seconds - first_s_, resize_and_crop(frame, spec_)});
  } else {
    if (frames_ > 0) {
      while (grid_time(shown_) + kToleranceS < frame.seconds - first_s_) show_held(shown_++);
    }
    held_ = std::move(frame);
    held_pixels_.clear();
  }
  ++frames_;
}

void Windows::finish() {
  if (frames_ > 0 && spec_.sample_fps) {
    while (grid_time(shown_) <= held_.seconds - first_s_ + kToleranceS) show_held(shown_++);
  }
  const bool none_yet = windows_ == 0 && !recent_.empty();
  if (none_yet || (windows_ > 0 && since_window_ > 0)) emit();
}

void Windows::show_held(std::size_t index) {
  if (held_pixels_.empty()) held_pixels_ = resize_and_crop(held_, spec_);
  push({grid_time(index), held_pixels_});
}

void Windows::push(Sampled sampled) {
  recent_.push_back(std::move(sampled));
  if (recent_.size() > spec_.frames) recent_.pop_front();
  ++since_window_;
  if (windows_ == 0 ? recent_.size() == spec_.frames : since_window_ == hop_) {
    since_window_ = 0;
    ++windows_;
    emit();
  }
}

void Windows::emit() const {
  Window window{recent_.front().seconds, recent_.back().seconds, {}};
  window.clip.reserve(spec_.clip_bytes());
  for (std::size_t i = 0; i < spec_.frames; ++i) {
    const auto& pixels = recent_[i % recent_.size()].pixels;
    window.clip.insert(window.clip.end(), pixels.begin(), pixels.end());
  }
  ready_(window);
}

}  // namespace edgeact
