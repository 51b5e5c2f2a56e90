package guest

import (
	"net/http"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// RouteIdentity is whom a request acts as whose route names a user and a group,
// {uid} and {gid}: with the user's supplementary groups, as with commands. Where
// the route names none it is the sandbox's.
func (g *Guest) RouteIdentity(r *http.Request) (account.Identity, error) {
	if r.PathValue("uid") == "" && r.PathValue("gid") == "" {
		return g.Identity, nil
	}
	var ids [2]uint32
	for i, name := range []string{"uid", "gid"} {
		text := r.PathValue(name)
		id, ok := account.ID(text)
		if !ok {
			return account.Identity{}, web.BadBody("%s is %q; it must be a number from 0 to 4294967294", name, text)
		}
		ids[i] = id
	}
	return g.Accounts.ByUID(ids[0], &ids[1])
}
