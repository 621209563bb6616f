// results.json: what this program measured, for `edgeact validate BUNDLE --results FILE` to judge.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "backend.h"
#include "bundle.h"

namespace edgeact {

struct Measured {
  std::vector<std::vector<float>> logits;  // of each golden clip, in the bundle's order
  std::vector<double> latency_ms;          // of each timed run
};

// Signal to quantization noise of `found` against `reference`, over all values at once, as edgeact/numerics.py has it:
// 150 dB where they are equal to the last bit.
double sqnr_db(const std::vector<float>& reference, const std::vector<float>& found);

// Refuses a file inside the bundle, which must stay as it was exported. Called before anything is measured.
void check_results_file(const std::filesystem::path& file, const Bundle& bundle);

// Written beside and renamed when whole.
void write_results(const std::filesystem::path& file, const Bundle& bundle, const std::vector<GoldenClip>& clips,
                   const Measured& measured, const Backend& backend);

}  // namespace edgeact
