import { render } from "preact";
import { useEffect } from "preact/hooks";
import "./style.css";
import "./theme";
import { session } from "./api";
import { Login, refreshSession } from "./login";
import { Shell } from "./shell";

function App() {
  const who = session.use();
  useEffect(() => void refreshSession(), []);
  if (who === undefined) return null;
  return who ? <Shell /> : <Login />;
}

render(<App />, document.getElementById("app")!);
