// What needs no network and no device, for tests/examples/test_jetson_cpp.py to judge.
//
//     pieces stamp ENGINE              is the engine taken on a made-up machine?
//     pieces windows BUNDLE NPY FPS HOP    the clips of a .npy of frames, one after the other, as bytes
#include <cstdio>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "../src/clips.h"
#include "../src/frames.h"
#include "../src/stamp.h"

namespace {

void stamp(const std::string& engine) {
  edgeact::Bundle bundle;
  bundle.folder = "bundle";
  bundle.onnx_sha256 = "abc";
  const std::string version = edgeact::tensorrt_version(100300);
  edgeact::check_stamp(engine, bundle,
                       {{"device", "NVIDIA Jetson Orin Nano"},
                        {"tensorrt", version},
                        {"cuda", "12.6"},
                        {"jetpack", edgeact::kNotTold}});
  std::cout << version << ' ' << edgeact::tensorrt_version(8502) << '\n';
}

void windows(const std::string& folder, const std::string& npy, double fps, std::size_t hop) {
  const auto frames = edgeact::open_frames(npy, fps);
  edgeact::Windows sliding(edgeact::open_bundle(folder).spec, hop, [](const edgeact::Window& window) {
    std::cerr << window.start_s << ' ' << window.end_s << '\n';
    std::fwrite(window.clip.data(), 1, window.clip.size(), stdout);
  });
  while (auto frame = frames->next()) sliding.add(std::move(*frame));
  sliding.finish();
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::vector<std::string> given(argv + 1, argv + argc);
    if (given.at(0) == "stamp") {
      stamp(given.at(1));
    } else {
      windows(given.at(1), given.at(2), std::stod(given.at(3)), std::stoul(given.at(4)));
    }
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 2;
  }
}
