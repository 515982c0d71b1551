package policy_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/policy"
)

// asRoot gives the administrator's right to uid 0.
func asRoot(c policy.Caller) func() error {
	return func() error {
		if c.UID == 0 {
			return nil
		}
		return policy.ErrDenied
	}
}

func TestResolveOwner(t *testing.T) {
	alice, root := policy.Caller{UID: 64101}, policy.Caller{UID: 0}
	exists := func(uid uint32) bool { return uid == 64101 || uid == 64102 || uid == 0 }
	hash := "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567"
	for name, test := range map[string]struct {
		caller policy.Caller
		word   string
		want   policy.Owner
		err    error
	}{
		"empty":                        {caller: alice, word: "", want: policy.Owner{UID: 64101, Word: "64101", All: true}},
		"own uid":                      {caller: alice, word: "64101", want: policy.Owner{UID: 64101, Word: "64101"}},
		"own uid with zeros":           {caller: alice, word: "0064101", want: policy.Owner{UID: 64101, Word: "0064101"}},
		"own uid in ten digits":        {caller: alice, word: "0000064101", want: policy.Owner{UID: 64101, Word: "0000064101"}},
		"own uid in eleven digits":     {caller: alice, word: "00000064101", want: policy.Owner{UID: 64101, Label: "00000064101", Word: "00000064101"}},
		"other user":                   {caller: alice, word: "64102", err: policy.ErrDenied},
		"other user with zeros":        {caller: alice, word: "064102", err: policy.ErrDenied},
		"root":                         {caller: alice, word: "0", err: policy.ErrDenied},
		"root in many digits":          {caller: alice, word: "0000000000", err: policy.ErrDenied},
		"user that does not exist":     {caller: alice, word: "12345", err: policy.ErrDenied},
		"uid that does not fit":        {caller: alice, word: "4294967296", err: policy.ErrDenied},
		"uid that would wrap to own":   {caller: alice, word: "4295031397", err: policy.ErrDenied},
		"largest ten digits":           {caller: alice, word: "9999999999", err: policy.ErrDenied},
		"admin, other user":            {caller: root, word: "64102", want: policy.Owner{UID: 64102, Word: "64102"}},
		"admin, itself":                {caller: root, word: "0", want: policy.Owner{UID: 0, Word: "0"}},
		"admin, empty":                 {caller: root, word: "", want: policy.Owner{UID: 0, Word: "0", All: true}},
		"admin, nobody there":          {caller: root, word: "12345", err: policy.ErrDenied},
		"admin, uid that does not fit": {caller: root, word: "9999999999", err: policy.ErrDenied},
		"label":                        {caller: alice, word: hash, want: policy.Owner{UID: 64101, Label: hash, Word: hash}},
		"label of one character":       {caller: alice, word: "x", want: policy.Owner{UID: 64101, Label: "x", Word: "x"}},
		"label with dash in front":     {caller: alice, word: "-1", want: policy.Owner{UID: 64101, Label: "-1", Word: "-1"}},
		"label of 64":                  {caller: alice, word: strings.Repeat("a", 64), want: policy.Owner{UID: 64101, Label: strings.Repeat("a", 64), Word: strings.Repeat("a", 64)}},
		"label of 65":                  {caller: alice, word: strings.Repeat("a", 65), err: policy.ErrOwner},
		"plus sign":                    {caller: alice, word: "+64101", err: policy.ErrOwner},
		"space":                        {caller: alice, word: " 64101", err: policy.ErrOwner},
		"newline behind":               {caller: alice, word: "64101\n", err: policy.ErrOwner},
		"newline behind a label":       {caller: alice, word: "x\n", err: policy.ErrOwner},
		"slash":                        {caller: alice, word: "a/b", err: policy.ErrOwner},
		"dots":                         {caller: alice, word: "..", err: policy.ErrOwner},
		"at sign":                      {caller: alice, word: "@x", err: policy.ErrOwner},
		"NUL":                          {caller: alice, word: "a\x00", err: policy.ErrOwner},
		"letters of another alphabet":  {caller: alice, word: "ä", err: policy.ErrOwner},
		"digits of another alphabet":   {caller: alice, word: "٦٤١٠١", err: policy.ErrOwner},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := policy.ResolveOwner(test.caller, test.word, asRoot(test.caller), exists)
			if !errors.Is(err, test.err) || got != test.want {
				t.Errorf("got %+v, %v; want %+v, %v", got, err, test.want, test.err)
			}
		})
	}
}

// The answer does not tell who has an account.
func TestResolveOwnerTellsNothing(t *testing.T) {
	alice := policy.Caller{UID: 64101}
	is := func(b bool) policy.UserLookup { return func(uint32) bool { return b } }
	_, there := policy.ResolveOwner(alice, "64102", asRoot(alice), is(true))
	_, away := policy.ResolveOwner(alice, "64102", asRoot(alice), is(false))
	if there == nil || away == nil || there.Error() != away.Error() {
		t.Errorf("a user that exists: %v; one that does not: %v", there, away)
	}
}

// The administrator's right is asked for when it is needed: a question may put
// a dialog on somebody's screen.
func TestTheRightIsAskedForOnlyForOthers(t *testing.T) {
	alice := policy.Caller{UID: 64101}
	for word, want := range map[string]int{"": 0, "64101": 0, "0064101": 0, "x": 0, "a/b": 0, "64102": 1, "0": 1, "9999999999": 1} {
		asked := 0
		policy.ResolveOwner(alice, word, func() error { asked++; return policy.ErrDenied }, func(uint32) bool {
			t.Errorf("%q: the user was looked up before the right was there", word)
			return true
		})
		if asked != want {
			t.Errorf("%q: asked %d times, want %d", word, asked, want)
		}
	}
}

func TestUserExists(t *testing.T) {
	if !policy.UserExists(uint32(os.Geteuid())) && os.Geteuid() == 0 {
		t.Error("root has no account")
	}
	if policy.UserExists(4294967294) {
		t.Error("uid 4294967294 has an account")
	}
}
