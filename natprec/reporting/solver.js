// The solver of natprec on a measured staircase: the functions of natprec/solver, step by step.
// `stairs` is what natprec/reporting/staircase.py writes. A plan is a list: of each group the index of its format.

function choicesAfter(stairs, steps) {
  const chosen = stairs.start.slice();
  for (let step = 0; step < steps; step++) chosen[stairs.group[step]] = stairs.format[step];
  return chosen;
}

function total(stairs, chosen, what) {
  return stairs.groups.reduce((sum, group, number) => sum + group[what][chosen[number]], 0);
}

// The cheapest plan with KL <= budget; the rest of the budget is spent on the later steps that still fit.
function withinKL(stairs, budget) {
  let steps = stairs.kl.findIndex((kl) => kl > budget);
  steps = Math.max(0, (steps < 0 ? stairs.kl.length : steps) - 1);
  const chosen = choicesAfter(stairs, steps);
  let left = budget - stairs.kl[steps];
  for (let step = steps; step < stairs.group.length; step++) {
    const group = stairs.groups[stairs.group[step]], format = stairs.format[step];
    const cost = group.kl[format] - group.kl[chosen[stairs.group[step]]];
    if (cost > left) continue;
    chosen[stairs.group[step]] = format;
    left -= cost;
  }
  return chosen;
}

// The plan of at most so many bytes with the least KL; what is left buys back the dearest steps that still fit.
function withinBytes(stairs, budget) {
  let steps = stairs.stored.findIndex((stored) => stored <= budget);
  if (steps < 0) steps = stairs.group.length;
  const chosen = choicesAfter(stairs, steps);
  let left = budget - stairs.stored[steps];
  for (let step = steps - 1; step >= 0; step--) {
    const number = stairs.group[step], group = stairs.groups[number];
    const place = group.hull.indexOf(chosen[number]);
    if (place === 0) continue;
    const cost = group.stored[group.hull[place - 1]] - group.stored[chosen[number]];
    if (cost <= left) {
      chosen[number] = group.hull[place - 1];
      left -= cost;
    }
  }
  return chosen;
}

// One format for most weights, where that stores no more than `chosen`; null where none does.
function bestUniform(stairs, chosen) {
  const shared = new Set(stairs.common), first = stairs.groups[stairs.common[0]];
  const allowed = total(stairs, chosen, "stored");
  let best = null;
  first.formats.forEach((_, format) => {
    const plan = chosen.map((index, number) => (shared.has(number) ? format : index));
    const kl = total(stairs, plan, "kl");
    if (total(stairs, plan, "stored") <= allowed && (best === null || kl < best.kl)) best = { kl, plan };
  });
  return best;
}

// {eps} or {bytes} of the whole checkpoint -> the plan and what it costs; null where no plan reaches it.
function solveStaircase(stairs, target) {
  let chosen;
  if (target.bytes !== undefined) {
    const allowed = target.bytes - stairs.fixed;
    if (stairs.stored[stairs.stored.length - 1] > allowed) return null;
    chosen = withinBytes(stairs, allowed);
  } else {
    const smallest = stairs.kl[0] + stairs.lost;
    if (smallest > target.eps) return null;
    const budget = Math.min(target.eps, Math.max(stairs.headroom * target.eps, smallest));
    chosen = withinKL(stairs, budget - stairs.lost);
  }
  const uniform = bestUniform(stairs, chosen);
  if (uniform !== null && uniform.kl < total(stairs, chosen, "kl")) chosen = uniform.plan;
  const stored = total(stairs, chosen, "bytes");
  return {
    chosen,
    kl: total(stairs, chosen, "kl") + stairs.lost,
    bytes: stored + stairs.fixed,
    bits: (8 * stored) / stairs.elements,
    uniform: uniform === null ? null : uniform.kl + stairs.lost,
  };
}
