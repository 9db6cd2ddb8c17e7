//! `matchConditions`: expressions that must hold of a request.

use serde_json::Value;

use crate::cel::admission::{Compiler, Gives};
use crate::kinds::value::{Read, repeats};
use crate::kinds::{FieldError, FieldErrors, checks};
use crate::meta::field::Path;

/// Most conditions of a webhook or a policy (Kubernetes').
const CONDITIONS_MAX: usize = 64;

/// Checks a list of conditions, compiled with whatever else its object says.
pub(crate) fn match_conditions(list: &Value, compiler: &mut Compiler<'_>, path: &Path<'_>, errors: &mut FieldErrors) {
    let conditions = list.items();
    if conditions.len() > CONDITIONS_MAX {
        errors.push(FieldError::too_many(path, conditions.len(), CONDITIONS_MAX));
    }
    let conditions = &conditions[..conditions.len().min(CONDITIONS_MAX)];
    let again = repeats(conditions.iter().map(|condition| condition["name"].text()));
    for ((index, condition), again) in conditions.iter().enumerate().zip(again) {
        let path = path.index(index);
        let expression = path.child("expression");
        match condition["expression"].text().trim() {
            "" => errors.push(FieldError::required(expression, "")),
            source => {
                if let Err(why) = compiler.expression(source, Gives::Bool, true) {
                    errors.push(FieldError::invalid(expression, source, &why));
                }
            }
        }
        let (path, name) = (path.child("name"), condition["name"].text());
        match name {
            "" => errors.push(FieldError::required(path, "")),
            name => checks::qualified_name(&path, name, errors),
        }
        if again && !name.is_empty() {
            errors.push(FieldError::duplicate(path, name));
        }
    }
}
