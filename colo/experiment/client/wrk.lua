-- For wrk: compares every body with what it must be, and prints one line for a program to read.

local letters = "abcdefghijklmnopqrstuvwxyz"
local body_due = letters:rep(40):sub(1, 1023) .. "\n"
local threads = {}
wrong = 0

function setup(thread)
  table.insert(threads, thread)
end

function response(status, headers, body)
  if status ~= 200 or body ~= body_due then
    wrong = wrong + 1
  end
end

function done(summary, latency, requests)
  local all_wrong, failed = 0, summary.errors
  for _, thread in ipairs(threads) do
    all_wrong = all_wrong + thread:get("wrong")
  end
  io.write(string.format("colo answers=%d us=%d p50=%d p90=%d p99=%d p999=%d max=%d wrong=%d errors=%d stuck=%d\n",
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(90),
    latency:percentile(99), latency:percentile(99.9), latency.max, all_wrong,
    failed.connect + failed.read + failed.write, failed.timeout))
end
