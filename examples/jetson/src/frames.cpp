#include "frames.h"

#include <algorithm>
#include <filesystem>

#include "npy.h"

#ifdef WITH_OPENCV
#include <chrono>
#include <opencv2/core.hpp>
#include <opencv2/videoio.hpp>
#endif

namespace edgeact {
namespace {

namespace fs = std::filesystem;

// uint8 frames N x H x W x RGB at a steady rate: the pipeline of an app, checked without a codec.
class NpyFrames : public Frames {
 public:
  NpyFrames(const fs::path& file, double fps) : npy_(file, "|u1", 4), fps_(fps) {
    const auto& shape = npy_.shape();
    if (shape[1] == 0 || shape[2] == 0 || shape[3] != 3) {
      throw Error(file.string() + " holds " + in_words(shape) + ", not frames of height x width x 3");
    }
  }

  std::optional<Frame> next() override {
    if (index_ == npy_.shape()[0]) return std::nullopt;
    Frame frame{npy_.shape()[1], npy_.shape()[2], {}, static_cast<double>(index_++) / fps_};
    frame.rgb.resize(frame.height * frame.width * 3);
    npy_.read(frame.rgb.data(), frame.rgb.size());
    return frame;
  }

 private:
  Npy npy_;
  double fps_;
  std::size_t index_ = 0;
};

#ifdef WITH_OPENCV

class OpenCvFrames : public Frames {
 public:
  explicit OpenCvFrames(const std::string& source) {
    const bool camera = !source.empty() && source.find_first_not_of("0123456789") == std::string::npos;
    const bool pipeline = source.find('!') != std::string::npos;
    live_ = camera || pipeline;
    if (!live_ && source.find("://") == std::string::npos && !fs::exists(source)) {
      throw Error(source + " is not there: give the number of a camera, a video, a URL or a GStreamer pipeline");
    }
    const bool opened = camera     ? source.size() < 4 && capture_.open(std::stoi(source))
                        : pipeline ? capture_.open(source, cv::CAP_GSTREAMER)
                                   : capture_.open(source);
    if (!opened) throw Error("OpenCV cannot open " + source + (pipeline ? ": is it built with GStreamer?" : ""));
  }

  std::optional<Frame> next() override {
    cv::Mat bgr;
    if (!capture_.read(bgr) || bgr.empty()) return std::nullopt;
    if (bgr.type() != CV_8UC3) throw Error("the source gives frames that are not BGR: end it with format=BGR");
    Frame frame{static_cast<std::size_t>(bgr.rows), static_cast<std::size_t>(bgr.cols), {}, seconds()};
    frame.rgb.resize(frame.height * frame.width * 3);
    for (int y = 0; y < bgr.rows; ++y) {
      const std::uint8_t* from = bgr.ptr<std::uint8_t>(y);
      std::uint8_t* to = frame.rgb.data() + static_cast<std::size_t>(y) * frame.width * 3;
      for (const std::uint8_t* end = from + frame.width * 3; from != end; from += 3, to += 3) {
        to[0] = from[2], to[1] = from[1], to[2] = from[0];
      }
    }
    return frame;
  }

 private:
  // Of a file by its timestamps, and by its nominal rate where those do not go on; of a camera by the clock.
  double seconds() {
    using Clock = std::chrono::steady_clock;
    if (live_) return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
    const double told = capture_.get(cv::CAP_PROP_POS_MSEC) / 1000, rate = capture_.get(cv::CAP_PROP_FPS);
    last_s_ = last_s_ && told <= *last_s_ ? *last_s_ + 1 / (rate > 0 ? rate : 25) : told;
    return *last_s_;
  }

  cv::VideoCapture capture_;
  bool live_ = false;
  std::optional<double> last_s_;
};

#endif

}  // namespace

std::unique_ptr<Frames> open_frames(const std::string& source, double fps) {
  if (fs::path(source).extension() == ".npy") {
    if (!(fps > 0)) throw Error(source + " holds frames without times: give their rate with --fps");
    return std::make_unique<NpyFrames>(source, fps);
  }
  if (fps > 0) throw Error("--fps is the rate of a .npy of frames: " + source + " tells its own times");
#ifdef WITH_OPENCV
  return std::make_unique<OpenCvFrames>(source);
#else
  throw Error("this edgeact_jetson was built without OpenCV, and opens .npy frames alone, not " + source +
              ": sudo apt install libopencv-dev, and build it again");
#endif
}

}  // namespace edgeact
