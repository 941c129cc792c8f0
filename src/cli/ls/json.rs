//! Steps and saves in the making as JSON.

use super::{Marks, totals};
use milepost::{Checkpoint, LeaseKind, StepEntry, StepState, WriterInfo};
use serde_json::{Map, Value, json};

/// Makes a step JSON; where marks were looked for, `pin` and `leases` are there.
pub(crate) fn to_json(entry: &StepEntry, marks: Option<&Marks>) -> Value {
    let place = entry.place.to_string();
    let mut value = match &entry.state {
        StepState::Damaged(why) => {
            json!({"step": entry.step, "state": "damaged", "why": why, "place": place})
        }
        StepState::Committed(checkpoint) => committed(checkpoint, &place),
    };
    if let Some(marks) = marks {
        let pin = marks.pin(entry.step);
        value["pin"] = pin.map(|p| json!({"why": p.why, "since_ms": p.since_ms})).into();
        let leases = marks.leases(entry.step).map(|lease| {
            let kind = match lease.kind {
                LeaseKind::Reader => "reader",
                LeaseKind::Deleting => "deleting",
            };
            json!({"kind": kind, "holder": lease.holder, "alive": lease.alive})
        });
        value["leases"] = leases.collect();
    }
    value
}

fn committed(checkpoint: &Checkpoint, place: &str) -> Value {
    let record = checkpoint.record();
    let (stored_bytes, leaves) = totals(checkpoint);
    let items: Map<String, Value> = record
        .items
        .iter()
        .map(|i| {
            let of = json!({"kind": i.kind.as_str(), "leaves": i.leaves, "data_bytes": i.data_bytes,
                "stored_bytes": i.stored_bytes, "objects": i.objects, "handler": i.handler,
                "metadata": i.metadata});
            (i.name.clone(), of)
        })
        .collect();
    json!({
        "step": record.step,
        "state": "committed",
        "place": place,
        "stored_bytes": stored_bytes,
        "leaves": leaves,
        "created_ms": record.created_ms,
        "committed_ms": record.committed_ms,
        "metrics": record.metrics,
        "metadata": record.metadata,
        "items": items,
        "notes": record.notes,
    })
}

/// Makes a save in the making JSON; what is not known is null.
pub(super) fn saving(writer: &WriterInfo) -> Value {
    json!({
        "step": writer.step,
        "state": "saving",
        "alive": writer.alive,
        "since_ms": (writer.since_ms > 0).then_some(writer.since_ms),
        "id": writer.id,
        "place": writer.place.to_string(),
    })
}
