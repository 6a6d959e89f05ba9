//! JSON from outside: bounded, and refused where a name occurs twice in one object, because readers
//! differ in which one they take and a signature would then mean different things to them.

use serde::Deserialize;
use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The document as `T`. Nesting is bounded by the reader at 128.
pub(crate) fn document<T: DeserializeOwned>(text: &[u8], limit: usize) -> Result<T, String> {
    serde_json::from_value(value(text, limit)?).map_err(|error| error.to_string())
}

/// The document, in which every name is unique in its object.
pub(crate) fn value(text: &[u8], limit: usize) -> Result<Value, String> {
    if text.len() > limit {
        return Err(format!("larger than {limit} bytes"));
    }
    serde_json::from_slice::<Unique>(text).map(|unique| unique.0).map_err(|error| error.to_string())
}

struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Unique)
    }
}

#[derive(Clone, Copy)]
struct UniqueVisitor;

impl<'de> DeserializeSeed<'de> for UniqueVisitor {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom("a name occurs twice in one object"));
            }
            let value = members.next_value_seed(self)?;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn names_are_unique_at_every_depth() {
        assert!(value(br#"{"a":[{"b":1,"c":-2.5e3,"d":null,"e":true}]}"#, 100).is_ok());
        for twice in [r#"{"a":1,"a":1}"#, r#"[{"x":{"a":1,"\u0061":2}}]"#] {
            let error = value(twice.as_bytes(), 100).unwrap_err();
            assert!(error.contains("twice"), "{error}");
        }
    }

    #[test]
    fn size_and_depth_are_bounded() {
        assert!(value(b"[1,2,3]", 6).unwrap_err().contains("larger"));
        assert!(value("[".repeat(200).as_bytes(), 1000).unwrap_err().contains("recursion"));
        assert!(value(b"{} {}", 100).is_err());
    }
}
