package wire

// FewFields reads messages of at most that many fields.
var FewFields = newFewFields
