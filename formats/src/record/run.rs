//! What a run's document says: how steps are named, and the user's metadata (spec/layout.md, L2).
//!
//! ```text
//! {"kind":"run", …, "metadata":{…}, "step_format":{"prefix":"step_","width":8}}     step 1200 is `step_00001200`
//! ```
//!
//! Both members are optional, and additive: a document without them is a run of plain numbers. A name is never two
//! steps, and never a revision of another step (`<name>.rN`), so a listing alone tells the steps.

use super::METADATA_BYTES_MAX;
use crate::{FormatError, Result, json};
use serde_json::{Map, Value, json};

/// A number of 64 bits has at most 20 digits.
const WIDTH_MAX: usize = 20;
/// Prefix, digits and a revision fit a node name with room to spare.
const PREFIX_BYTES_MAX: usize = 100;

/// How the number of a step becomes the name of its node. Default: plain numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct StepFormat {
    /// What stands before the number.
    pub prefix: String,
    /// Numbers are padded with zeros to so many digits; 0 pads none.
    pub width: usize,
}

impl StepFormat {
    /// Returns a format whose names can be told apart.
    ///
    /// # Errors
    /// `Invalid` as [`StepFormat::validate`].
    pub fn new(prefix: impl Into<String>, width: usize) -> Result<Self> {
        let format = Self { prefix: prefix.into(), width };
        format.validate()?;
        Ok(format)
    }

    /// Checks that every name is a plain node name, no revision of another, and gives its number back.
    ///
    /// # Errors
    /// `Invalid` where the prefix has other bytes than letters, digits, `.`, `_`, `-`, begins with `.` or `__`, ends in a
    /// digit or in `.r`, or is over 100 bytes; or where the width is over 20.
    pub fn validate(&self) -> Result<()> {
        let prefix = self.prefix.as_str();
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let wrong = if !prefix.bytes().all(plain) {
            "has other characters than letters, digits, `.`, `_`, `-`"
        } else if prefix.starts_with('.') || prefix.starts_with("__") {
            "begins with `.` or `__`"
        } else if prefix.ends_with(|c: char| c.is_ascii_digit()) {
            "ends in a digit"
        } else if prefix.as_bytes().ends_with(b".r") {
            "makes names that are revisions (`.r1`)"
        } else if prefix.len() > PREFIX_BYTES_MAX {
            "is over 100 bytes"
        } else if self.width > WIDTH_MAX {
            let width = self.width;
            return Err(FormatError::invalid(format!(
                "a step number has at most 20 digits. width=`{width}`"
            )));
        } else {
            return Ok(());
        };
        let prefix = json::shorten(prefix);
        Err(FormatError::invalid(format!("the prefix of step names {wrong}. prefix=`{prefix}`")))
    }

    /// Returns the name of a step.
    #[must_use]
    pub fn name(&self, step: u64) -> String {
        format!("{}{step:0width$}", self.prefix, width = self.width)
    }

    /// Returns the step of a name; `None` where [`StepFormat::name`] gives it to none.
    #[must_use]
    pub fn parse(&self, name: &str) -> Option<u64> {
        let digits = name.strip_prefix(self.prefix.as_str())?;
        let plain = digits.bytes().all(|b| b.is_ascii_digit());
        // One name a step: other paddings, signs and what overflows are somebody else's.
        let step = digits.parse().ok().filter(|_| plain)?;
        (self.name(step) == name).then_some(step)
    }
}

/// The members of a run's document that are the run's own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunMembers {
    /// How steps are named.
    pub step_format: StepFormat,
    /// The user's metadata, with non-finite floats as [`super::tagged`] has them.
    pub metadata: Map<String, Value>,
}

impl RunMembers {
    /// Returns them as [`super::run_document`] takes them; what is default is left out.
    ///
    /// # Errors
    /// `Invalid` where the format is, or the metadata is over 1 MiB.
    pub fn to_members(&self) -> Result<Map<String, Value>> {
        self.step_format.validate()?;
        let mut members = Map::new();
        if self.step_format != StepFormat::default() {
            let StepFormat { prefix, width } = &self.step_format;
            members.insert("step_format".to_owned(), json!({"prefix": prefix, "width": width}));
        }
        if !self.metadata.is_empty() {
            let metadata = Value::Object(self.metadata.clone());
            let bytes = json::to_bytes(&metadata).len();
            if bytes > METADATA_BYTES_MAX {
                let text = format!("the metadata of a run is over 1 MiB. bytes=`{bytes}`");
                return Err(FormatError::invalid(text));
            }
            members.insert("metadata".to_owned(), metadata);
        }
        Ok(members)
    }

    /// Reads the members of a [`super::Root::Run`]; those that it does not know are ignored.
    ///
    /// # Errors
    /// `Unsupported` where the step format is none that this version knows, `Corrupt` where metadata is no object.
    pub fn from_members(members: &Map<String, Value>) -> Result<Self> {
        let step_format = members.get("step_format").map_or_else(
            || Ok(StepFormat::default()),
            |value| {
                parse_format(value).ok_or_else(|| {
                    let value = json::show(value);
                    FormatError::unsupported(format!("unknown step format. step_format=`{value}`"))
                })
            },
        )?;
        let metadata = match members.get("metadata") {
            None => Map::new(),
            Some(Value::Object(metadata)) => metadata.clone(),
            Some(_) => return Err(FormatError::corrupt("the metadata of a run is no object")),
        };
        Ok(Self { step_format, metadata })
    }
}

fn parse_format(value: &Value) -> Option<StepFormat> {
    let prefix = value.get("prefix")?.as_str()?;
    let width = usize::try_from(value.get("width")?.as_u64()?).ok()?;
    StepFormat::new(prefix, width).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FormatErrorKind, index::is_node_name};
    use proptest::prelude::*;

    #[test]
    fn a_name_is_one_step_and_a_step_has_one_name() {
        for (prefix, width, name, step) in [
            ("", 0, "0", Some(0)),
            ("", 0, "12", Some(12)),
            ("", 0, "0012", None),
            ("", 0, "18446744073709551615", Some(u64::MAX)),
            ("", 0, "18446744073709551616", None),
            ("", 0, "+1", None),
            ("", 0, "", None),
            ("", 4, "0012", Some(12)),
            ("", 4, "12", None),
            ("", 4, "00012", None),
            ("", 4, "12345", Some(12345)),
            ("", 4, "0000", Some(0)),
            ("step_", 8, "step_00001200", Some(1200)),
            ("step_", 8, "00001200", None),
            ("step_", 8, "step_", None),
            ("step_", 8, "step_00001200.r1", None),
            ("step-", 0, "step--1", None),
        ] {
            let format = StepFormat::new(prefix, width).unwrap();
            assert_eq!(format.parse(name), step, "{prefix} {width} {name}");
            if let Some(step) = step {
                assert_eq!(format.name(step), name);
            }
        }
    }

    #[test]
    fn a_format_whose_names_could_be_others_is_refused() {
        for (prefix, width) in [
            (".step", 0),
            ("__step", 0),
            ("step1", 0),
            ("a/b", 0),
            ("a b", 0),
            ("é", 0),
            ("x.r", 0),
            ("%41", 0),
            ("ok", 21),
            (&"x".repeat(101), 0),
        ] {
            let error = StepFormat::new(prefix, width).unwrap_err();
            assert_eq!(error.kind(), FormatErrorKind::Invalid, "{error}");
        }
        for prefix in ["step.", "_", "r", "a.rx-"] {
            assert!(StepFormat::new(prefix, 3).is_ok(), "{prefix}");
        }
    }

    #[test]
    fn the_members_of_a_run_survive_and_unknown_ones_are_ignored() {
        let run = RunMembers {
            step_format: StepFormat::new("step_", 8).unwrap(),
            metadata: json::object([("model", json!("gpt"))]),
        };
        let mut members = run.to_members().unwrap();
        members["step_format"]["later"] = json!(1);
        members.insert("later".into(), json!(2));
        assert_eq!(RunMembers::from_members(&members).unwrap(), run);
        assert_eq!(RunMembers::default().to_members().unwrap(), Map::new());
        assert_eq!(RunMembers::from_members(&Map::new()).unwrap(), RunMembers::default());
        for (name, value, kind) in [
            ("step_format", json!("{step}"), FormatErrorKind::Unsupported),
            ("step_format", json!({"prefix": "../", "width": 0}), FormatErrorKind::Unsupported),
            ("step_format", json!({"prefix": "a", "width": -1}), FormatErrorKind::Unsupported),
            ("metadata", json!([]), FormatErrorKind::Corrupt),
        ] {
            let members = json::object([(name, value)]);
            assert_eq!(RunMembers::from_members(&members).unwrap_err().kind(), kind);
        }
        let blob = json::object([("blob", json!("x".repeat(METADATA_BYTES_MAX)))]);
        let large = RunMembers { metadata: blob, ..run };
        assert_eq!(large.to_members().unwrap_err().kind(), FormatErrorKind::Invalid);
    }

    proptest! {
        #[test]
        fn every_step_is_found_by_its_name_only(
            prefix in "[a-z_.-]{0,6}",
            width in 0_usize..=20,
            step in any::<u64>(),
            other in "[a-z0-9_.-]{0,24}",
        ) {
            let Ok(format) = StepFormat::new(prefix, width) else { return Ok(()) };
            let name = format.name(step);
            prop_assert!(is_node_name(&name), "{}", name);
            prop_assert_eq!(format.parse(&name), Some(step));
            if let Some(step) = format.parse(&other) {
                prop_assert_eq!(format.name(step), other);
            }
        }
    }
}
