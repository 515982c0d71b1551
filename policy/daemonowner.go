package policy

import (
	"fmt"
	"strconv"
	"strings"
)

// DaemonOwner reads an owner as Auberge's daemons write it to each other, UID
// or UID:LABEL. An ordinary owner word depends on who wrote it, and a daemon
// speaks for everybody. Nobody else may name an owner like this.
func DaemonOwner(word string) (Owner, error) {
	number, name, labelled := strings.Cut(word, ":")
	uid, err := strconv.ParseUint(number, 10, 32)
	// One owner has one word: 007 and +7 are none.
	if err != nil || strconv.FormatUint(uid, 10) != number || labelled && !label.MatchString(name) {
		return Owner{}, fmt.Errorf("%w: between daemons it is UID or UID:LABEL, not %q", ErrOwner, word[:min(len(word), 100)])
	}
	o := Owner{UID: uint32(uid), Label: name, Word: number}
	if labelled {
		o.Word = name
	}
	return o, nil
}

// DaemonWord is the owner in words that DaemonOwner reads.
func (o Owner) DaemonWord() string {
	uid := strconv.FormatUint(uint64(o.UID), 10)
	if o.Label == "" {
		return uid
	}
	return uid + ":" + o.Label
}
