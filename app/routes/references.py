"""References to dictionaries, as requests have them."""

from app.errors import InvalidFields
from app.store.references import Reference


def parsed(reference: str, place: str = "reference") -> Reference:
    try:
        return Reference.parse(reference)
    except ValueError as error:
        raise InvalidFields.at(place, msg=str(error)) from None
