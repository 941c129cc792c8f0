//! Policies: when to save and what to keep, with functions of Python inside.

use crate::{
    json::to_dict,
    options::unknown,
    save::seconds,
    wait::{attached, detached},
};
use milepost::{BestMode, Metric, MissingMetric, SaveContext, StepInfo};
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyDict, PyList},
};
use serde_json::{Map, Value};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

/// The exceptions that functions inside policies raised; who asked the policy raises them.
#[derive(Clone, Default)]
pub(crate) struct Raised(Vec<Arc<Mutex<Option<PyErr>>>>);

impl Raised {
    fn one() -> (Self, Arc<Mutex<Option<PyErr>>>) {
        let slot = Arc::default();
        (Self(vec![Arc::clone(&slot)]), slot)
    }

    fn all<'a>(members: impl Iterator<Item = &'a Self>) -> Self {
        Self(members.flat_map(|raised| raised.0.iter().cloned()).collect())
    }

    /// Raises what was raised since the last look.
    pub(crate) fn check(&self) -> PyResult<()> {
        let mut found = self
            .0
            .iter()
            .filter_map(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).take());
        found.next().map_or(Ok(()), Err)
    }
}

/// Calls a function of Python inside a policy; `None` where it raised, which is kept.
fn ask<T>(
    slot: &Mutex<Option<PyErr>>,
    question: impl FnOnce(Python<'_>) -> PyResult<T>,
) -> Option<T> {
    match attached(question)? {
        Ok(answer) => Some(answer),
        Err(error) => {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            None
        }
    }
}

/// When to save.
#[pyclass(frozen, module = "milepost._milepost")]
pub(crate) struct SaveDecision {
    pub(crate) policy: milepost::SaveDecision,
    pub(crate) raised: Raised,
}

impl SaveDecision {
    fn plain(policy: milepost::SaveDecision) -> PyResult<Self> {
        policy.validate().map_err(|e| crate::errors::raise(&e))?;
        Ok(Self { policy, raised: Raised::default() })
    }
}

fn context_dict<'py>(py: Python<'py>, context: &SaveContext) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("step", context.step)?;
    dict.set_item("latest", context.latest)?;
    dict.set_item("steps", context.steps)?;
    dict.set_item("in_flight", context.in_flight)?;
    dict.set_item("since_begun", context.since_begun.map(|t| t.as_secs_f64()))?;
    dict.set_item("since_committed", context.since_committed.map(|t| t.as_secs_f64()))?;
    dict.set_item("preempted", context.preempted)?;
    Ok(dict)
}

#[pymethods]
impl SaveDecision {
    #[staticmethod]
    fn interval(n: u64) -> PyResult<Self> {
        Self::plain(milepost::SaveDecision::Interval(n))
    }

    #[staticmethod]
    fn steps(steps: BTreeSet<u64>) -> PyResult<Self> {
        Self::plain(milepost::SaveDecision::Steps(steps))
    }

    #[staticmethod]
    fn every_seconds(interval: f64) -> PyResult<Self> {
        Self::plain(milepost::SaveDecision::EverySeconds(seconds(interval)?))
    }

    #[staticmethod]
    fn continuous(minimum: f64) -> PyResult<Self> {
        Self::plain(milepost::SaveDecision::Continuous { minimum: seconds(minimum)? })
    }

    #[staticmethod]
    fn initial() -> PyResult<Self> {
        Self::plain(milepost::SaveDecision::Initial)
    }

    #[staticmethod]
    fn preemption() -> PyResult<Self> {
        Self::plain(milepost::SaveDecision::Preemption)
    }

    #[staticmethod]
    fn any(members: Vec<PyRef<'_, Self>>) -> PyResult<Self> {
        let policies = members.iter().map(|member| member.policy.clone()).collect();
        let raised = Raised::all(members.iter().map(|member| &member.raised));
        Ok(Self { raised, ..Self::plain(milepost::SaveDecision::Any(policies))? })
    }

    #[staticmethod]
    fn all(members: Vec<PyRef<'_, Self>>) -> PyResult<Self> {
        let policies = members.iter().map(|member| member.policy.clone()).collect();
        let raised = Raised::all(members.iter().map(|member| &member.raised));
        Ok(Self { raised, ..Self::plain(milepost::SaveDecision::All(policies))? })
    }

    /// Asks `function(context: dict)`; where it raises, the step is not saved and the exception comes out of `save`.
    #[staticmethod]
    fn when(function: Py<PyAny>) -> Self {
        let (raised, slot) = Raised::one();
        let policy = milepost::SaveDecision::when(move |context| {
            let asked = ask(&slot, |py| {
                function.bind(py).call1((context_dict(py, context)?,))?.is_truthy()
            });
            asked.unwrap_or(false)
        });
        Self { policy, raised }
    }

    /// Decides about a step: whether to save it, and why.
    #[pyo3(signature = (step, *, latest=None, steps=0, in_flight=0, since_begun=None, since_committed=None, preempted=false))]
    #[expect(clippy::too_many_arguments, reason = "the fields of one context")]
    fn decide(
        &self,
        py: Python<'_>,
        step: u64,
        latest: Option<u64>,
        steps: usize,
        in_flight: usize,
        since_begun: Option<f64>,
        since_committed: Option<f64>,
        preempted: bool,
    ) -> PyResult<(bool, String)> {
        let context = SaveContext {
            step,
            latest,
            steps,
            in_flight,
            since_begun: since_begun.map(seconds).transpose()?,
            since_committed: since_committed.map(seconds).transpose()?,
            preempted,
        };
        let decision = detached(py, || self.policy.decide(&context));
        self.raised.check()?;
        Ok((decision.save, decision.reason))
    }

    fn __repr__(&self) -> String {
        format!("SaveDecision({:?})", self.policy)
    }
}

/// What to keep.
#[pyclass(frozen, module = "milepost._milepost")]
pub(crate) struct Preservation {
    pub(crate) policy: milepost::Preservation,
    pub(crate) raised: Raised,
}

impl Preservation {
    fn plain(policy: milepost::Preservation) -> PyResult<Self> {
        policy.validate().map_err(|e| crate::errors::raise(&e))?;
        Ok(Self { policy, raised: Raised::default() })
    }
}

fn info_dict<'py>(py: Python<'py>, info: &StepInfo) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("step", info.step)?;
    dict.set_item("committed_ms", info.committed_ms)?;
    dict.set_item("metrics", to_dict(py, &info.metrics)?)?;
    dict.set_item("pinned", info.pinned)?;
    dict.set_item("damaged", info.damaged)?;
    Ok(dict)
}

/// Reads `"max"` or `"min"`.
pub(crate) fn best_mode(word: &str) -> PyResult<BestMode> {
    match word {
        "min" => Ok(BestMode::Min),
        "max" => Ok(BestMode::Max),
        _ => Err(unknown("mode", word, "\"min\" or \"max\"")),
    }
}

fn metric(metric: &Bound<'_, PyAny>) -> (Metric, Raised) {
    if let Ok(name) = metric.extract::<String>() {
        return (Metric::Named(name), Raised::default());
    }
    let function = metric.clone().unbind();
    let (raised, slot) = Raised::one();
    let metric = Metric::function(move |metrics: &Map<String, Value>| {
        let asked = ask(&slot, |py| {
            let value = function.bind(py).call1((to_dict(py, metrics)?,))?;
            if value.is_none() { Ok(None) } else { value.extract::<f64>().map(Some) }
        });
        asked.flatten()
    });
    (metric, raised)
}

#[pymethods]
impl Preservation {
    #[staticmethod]
    fn everything() -> PyResult<Self> {
        Self::plain(milepost::Preservation::All)
    }

    #[staticmethod]
    fn latest(n: usize) -> PyResult<Self> {
        Self::plain(milepost::Preservation::Latest(n))
    }

    #[staticmethod]
    #[pyo3(signature = (metric, mode="max", n=None, missing="keep"))]
    fn best(
        metric: &Bound<'_, PyAny>,
        mode: &str,
        n: Option<usize>,
        missing: &str,
    ) -> PyResult<Self> {
        let (metric, raised) = self::metric(metric);
        let missing = match missing {
            "keep" => MissingMetric::Keep,
            "drop" => MissingMetric::Drop,
            word => return Err(unknown("missing", word, "\"keep\" or \"drop\"")),
        };
        let mode = best_mode(mode)?;
        let policy = milepost::Preservation::Best { metric, mode, n, missing };
        Ok(Self { raised, ..Self::plain(policy)? })
    }

    #[staticmethod]
    fn every_steps(n: u64) -> PyResult<Self> {
        Self::plain(milepost::Preservation::EverySteps(n))
    }

    #[staticmethod]
    fn every_steps_apart(n: u64) -> PyResult<Self> {
        Self::plain(milepost::Preservation::EveryStepsApart(n))
    }

    #[staticmethod]
    fn every_steps_closest(n: u64) -> PyResult<Self> {
        Self::plain(milepost::Preservation::EveryStepsClosest(n))
    }

    #[staticmethod]
    fn every_seconds(interval: f64) -> PyResult<Self> {
        Self::plain(milepost::Preservation::EverySeconds(seconds(interval)?))
    }

    #[staticmethod]
    fn steps(steps: BTreeSet<u64>) -> PyResult<Self> {
        Self::plain(milepost::Preservation::Steps(steps))
    }

    #[staticmethod]
    fn latest_duration(duration: f64) -> PyResult<Self> {
        Self::plain(milepost::Preservation::LatestDuration(seconds(duration)?))
    }

    #[staticmethod]
    fn any(members: Vec<PyRef<'_, Self>>) -> PyResult<Self> {
        let policies = members.iter().map(|member| member.policy.clone()).collect();
        let raised = Raised::all(members.iter().map(|member| &member.raised));
        Ok(Self { raised, ..Self::plain(milepost::Preservation::Any(policies))? })
    }

    /// Keeps the steps that `function(steps: list of dicts)` returns; where it raises, all.
    #[staticmethod]
    fn custom(function: Py<PyAny>) -> Self {
        let (raised, slot) = Raised::one();
        let policy = milepost::Preservation::custom(move |steps: &[StepInfo]| {
            let asked = ask(&slot, |py| {
                let infos = steps.iter().map(|info| info_dict(py, info));
                let infos = PyList::new(py, infos.collect::<PyResult<Vec<_>>>()?)?;
                let kept = function.bind(py).call1((infos,))?;
                kept.try_iter()?.map(|step| step?.extract()).collect::<PyResult<BTreeSet<u64>>>()
            });
            asked.unwrap_or_else(|| steps.iter().map(|info| info.step).collect())
        });
        Self { policy, raised }
    }

    /// Plans what to keep, with reasons, and what to delete of steps given as dicts.
    fn plan(&self, py: Python<'_>, steps: Vec<Bound<'_, PyDict>>) -> PyResult<Plan> {
        let mut infos = Vec::with_capacity(steps.len());
        for step in steps {
            let field = |name: &str| {
                step.get_item(name)?.ok_or_else(|| PyValueError::new_err(format!("no {name}")))
            };
            let metrics = field("metrics")?;
            infos.push(StepInfo {
                step: field("step")?.extract()?,
                committed_ms: field("committed_ms")?.extract()?,
                metrics: crate::json::to_members(Some(metrics.cast::<PyDict>()?), "metrics")?,
                pinned: field("pinned")?.extract()?,
                damaged: field("damaged")?.extract()?,
            });
        }
        let plan = detached(py, || self.policy.plan(&infos));
        self.raised.check()?;
        Ok((plan.keep, plan.delete))
    }

    fn __repr__(&self) -> String {
        format!("Preservation({:?})", self.policy)
    }
}

/// The steps to keep with their reasons, and those to delete.
pub(crate) type Plan = (Vec<(u64, Vec<String>)>, Vec<u64>);
