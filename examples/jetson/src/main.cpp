// A bundle of edgeact in a C++ program: its golden clips checked on this device, and a camera or a video classified.
#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "error.h"
#include "verbs.h"

namespace {

using edgeact::Error;

constexpr const char* kUsage =
    "edgeact_jetson golden BUNDLE [--engine DIR] [--results FILE] [--rounds N] [--threads N]\n"
    "edgeact_jetson run    BUNDLE SOURCE [--engine DIR] [--hop N] [--top N] [--threads N] [--fps RATE]\n"
    "\n"
    "golden   the bundle's own clips against their reference logits\n"
    "run      labels with scores for each window of SOURCE: the number of a camera, a video file, a URL, a GStreamer\n"
    "         pipeline, or a .npy of uint8 frames [N, H, W, RGB] at --fps\n"
    "\n"
    "--engine   folder of build_engine.py's engine [default: BUNDLE.engine, beside the bundle]\n"
    "--results  write what was measured, for `edgeact validate BUNDLE --results FILE`\n"
    "--rounds   timed runs [default: 30]\n"
    "--hop      sampled frames between windows [default: half a clip]\n"
    "--top      labels to print per window [default: 3]\n"
    "--threads  CPU threads of the openvino backend [default: every core]\n"
    "\n"
    "Exit status: 0 held, 1 the golden clips fell short of the bundle's gate, 2 wrong usage or input.\n";

std::size_t number(const std::string& option, const std::string& text) {
  int value = 0;
  const auto [end, wrong] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (wrong != std::errc() || end != text.data() + text.size() || value < 1 || value > 1000000) {
    throw Error(option + " is '" + text + "': it must be a whole number from 1 to 1000000");
  }
  return static_cast<std::size_t>(value);
}

double rate(const std::string& option, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value > 0) || value > 1e6) {
    throw Error(option + " is '" + text + "': it must be a positive rate in frames per second");
  }
  return value;
}

edgeact::Options parse(const std::string& verb, const std::vector<std::string>& arguments) {
  std::vector<std::string> known{"--engine", "--results", "--rounds", "--threads"};
  if (verb == "run") known = {"--engine", "--hop", "--top", "--threads", "--fps"};
  edgeact::Options options;
  std::vector<std::string> places;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument.rfind("--", 0) != 0) {
      places.push_back(argument);
      continue;
    }
    if (std::find(known.begin(), known.end(), argument) == known.end()) {
      throw Error("`" + verb + "` has no option " + argument + ": edgeact_jetson --help");
    }
    if (++i == arguments.size()) throw Error(argument + " needs a value: edgeact_jetson --help");
    const std::string& value = arguments[i];
    if (argument == "--engine") options.engine = value;
    if (argument == "--results") options.results = value;
    if (argument == "--rounds") options.rounds = number(argument, value);
    if (argument == "--hop") options.hop = number(argument, value);
    if (argument == "--top") options.top = number(argument, value);
    if (argument == "--threads") options.threads = static_cast<int>(number(argument, value));
    if (argument == "--fps") options.fps = rate(argument, value);
  }
  const std::size_t wanted = verb == "run" ? 2 : 1;
  if (places.size() != wanted) {
    throw Error("`" + verb + "` takes " + (wanted == 2 ? "BUNDLE and SOURCE" : "BUNDLE") + ", found " +
                std::to_string(places.size()) + " arguments: edgeact_jetson --help");
  }
  options.bundle = places[0];
  if (wanted == 2) options.source = places[1];
  return options;
}

int dispatch(const std::vector<std::string>& arguments) {
  const std::string verb = arguments.empty() ? "" : arguments[0];
  if (std::find(arguments.begin(), arguments.end(), "--help") != arguments.end()) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  if (verb != "golden" && verb != "run") {
    throw Error("the first argument is golden or run, found '" + verb + "': edgeact_jetson --help");
  }
  const edgeact::Options options = parse(verb, {arguments.begin() + 1, arguments.end()});
  return verb == "run" ? edgeact::run(options) : edgeact::golden(options);
}

}  // namespace

int main(int argc, char** argv) {
  std::string what = "an exception of an unknown kind";
  try {
    return dispatch({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    what = error.what();
  } catch (...) {  // a vendor's own, which derives from nothing
  }
  while (!what.empty() && (what.back() == '\n' || what.back() == ' ')) what.pop_back();
  std::replace(what.begin(), what.end(), '\n', ' ');
  std::fflush(stdout);
  std::fprintf(stderr, "error: %s\n", what.c_str());
  return 2;
}
