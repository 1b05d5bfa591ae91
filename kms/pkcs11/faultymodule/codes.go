package faultymodule

// Code is a return value that package pkcs11 has a rule for, or at least a
// name.
type Code struct {
	Value uint
	Name  string
	// Class is what package pkcs11 does about it.
	Class string
}

// The classes of codes; errors.go in package pkcs11 says what they mean.
const (
	Fault     = "fault"
	Stale     = "stale"
	Gone      = "gone"
	Full      = "full"
	Refused   = "refused"
	Forbidden = "forbidden"
	Unfit     = "unfit"
)

// Codes are all codes in the table of package pkcs11. A test there holds the two
// together.
func Codes() []Code {
	return []Code{
		{0x00B3, "CKR_SESSION_HANDLE_INVALID", Stale},
		{0x00B0, "CKR_SESSION_CLOSED", Stale},
		{0x0082, "CKR_OBJECT_HANDLE_INVALID", Stale},
		{0x0060, "CKR_KEY_HANDLE_INVALID", Stale},
		{0x0101, "CKR_USER_NOT_LOGGED_IN", Stale},
		{0x0090, "CKR_OPERATION_ACTIVE", Stale},
		{0x0005, "CKR_GENERAL_ERROR", Stale},
		{0x0006, "CKR_FUNCTION_FAILED", Stale},
		{0x0030, "CKR_DEVICE_ERROR", Stale},
		{0x00F0, "CKR_UNWRAPPING_KEY_HANDLE_INVALID", Stale},
		{0x0113, "CKR_WRAPPING_KEY_HANDLE_INVALID", Stale},
		{0x0032, "CKR_DEVICE_REMOVED", Gone},
		{0x00E0, "CKR_TOKEN_NOT_PRESENT", Gone},
		{0x00E1, "CKR_TOKEN_NOT_RECOGNIZED", Gone},
		{0x0003, "CKR_SLOT_ID_INVALID", Gone},
		{0x0190, "CKR_CRYPTOKI_NOT_INITIALIZED", Gone},
		{0x00B1, "CKR_SESSION_COUNT", Full},
		{0x0031, "CKR_DEVICE_MEMORY", Full},
		{0x00A0, "CKR_PIN_INCORRECT", Refused},
		{0x00A1, "CKR_PIN_INVALID", Refused},
		{0x00A2, "CKR_PIN_LEN_RANGE", Refused},
		{0x00A3, "CKR_PIN_EXPIRED", Refused},
		{0x00A4, "CKR_PIN_LOCKED", Refused},
		{0x001B, "CKR_ACTION_PROHIBITED", Forbidden},
		{0x0068, "CKR_KEY_FUNCTION_NOT_PERMITTED", Forbidden},
		{0x00B5, "CKR_SESSION_READ_ONLY", Forbidden},
		{0x00E2, "CKR_TOKEN_WRITE_PROTECTED", Forbidden},
		{0x0021, "CKR_DATA_LEN_RANGE", Unfit},
		{0x0062, "CKR_KEY_SIZE_RANGE", Unfit},
		{0x0063, "CKR_KEY_TYPE_INCONSISTENT", Unfit},
		{0x0070, "CKR_MECHANISM_INVALID", Unfit},
		{0x0071, "CKR_MECHANISM_PARAM_INVALID", Unfit},
		{0x00F2, "CKR_UNWRAPPING_KEY_SIZE_RANGE", Unfit},
		{0x00F3, "CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT", Unfit},
		{0x0114, "CKR_WRAPPING_KEY_SIZE_RANGE", Unfit},
		{0x0115, "CKR_WRAPPING_KEY_TYPE_INCONSISTENT", Unfit},
		{0x0130, "CKR_DOMAIN_PARAMS_INVALID", Unfit},
		{0x0140, "CKR_CURVE_NOT_SUPPORTED", Unfit},
		{0x0001, "CKR_CANCEL", Fault},
		{0x0002, "CKR_HOST_MEMORY", Fault},
		{0x0007, "CKR_ARGUMENTS_BAD", Fault},
		{0x000A, "CKR_CANT_LOCK", Fault},
		{0x0010, "CKR_ATTRIBUTE_READ_ONLY", Fault},
		{0x0011, "CKR_ATTRIBUTE_SENSITIVE", Fault},
		{0x0012, "CKR_ATTRIBUTE_TYPE_INVALID", Fault},
		{0x0013, "CKR_ATTRIBUTE_VALUE_INVALID", Fault},
		{0x0020, "CKR_DATA_INVALID", Fault},
		{0x0040, "CKR_ENCRYPTED_DATA_INVALID", Fault},
		{0x0041, "CKR_ENCRYPTED_DATA_LEN_RANGE", Fault},
		{0x0050, "CKR_FUNCTION_CANCELED", Fault},
		{0x0054, "CKR_FUNCTION_NOT_SUPPORTED", Fault},
		{0x0069, "CKR_KEY_NOT_WRAPPABLE", Fault},
		{0x006A, "CKR_KEY_UNEXTRACTABLE", Fault},
		{0x0091, "CKR_OPERATION_NOT_INITIALIZED", Fault},
		{0x00B6, "CKR_SESSION_READ_ONLY_EXISTS", Fault},
		{0x00D0, "CKR_TEMPLATE_INCOMPLETE", Fault},
		{0x00D1, "CKR_TEMPLATE_INCONSISTENT", Fault},
		{0x0100, "CKR_USER_ALREADY_LOGGED_IN", Fault},
		{0x0102, "CKR_USER_PIN_NOT_INITIALIZED", Fault},
		{0x0104, "CKR_USER_ANOTHER_ALREADY_LOGGED_IN", Fault},
		{0x0110, "CKR_WRAPPED_KEY_INVALID", Fault},
		{0x0112, "CKR_WRAPPED_KEY_LEN_RANGE", Fault},
		{0x0150, "CKR_BUFFER_TOO_SMALL", Fault},
		{0x0191, "CKR_CRYPTOKI_ALREADY_INITIALIZED", Fault},
		{0x0200, "CKR_FUNCTION_REJECTED", Fault},
	}
}
